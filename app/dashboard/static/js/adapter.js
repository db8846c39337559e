// One adapter: what it is, its card, the adapters of its job's checkpoints, and its exports.

import { useState } from "../vendor/htm-preact.js";
import { ApiError, download, get, getAll, post, remove, send } from "./api.js";
import { ago, bytes, moment, number, percent } from "./format.js";
import { Markdown } from "./markdown.js";
import { placeInLine, PriorityField, WaitingPriority } from "./priority.js";
import { Action, Card, Confirm, Facts, Field, html, Loading, Page, Problem, State, tell, useLoaded } from "./ui.js";

const FORMATS = [
  ["gguf", "GGUF, for llama.cpp and Ollama"],
  ["merged", "Merged model, safetensors"],
  ["fp8", "Merged model in FP8, for vLLM and SGLang"],
  ["awq", "Merged model in 4 bits by AWQ, for vLLM and SGLang"],
  ["gptq", "Merged model in 4 bits by GPTQ, for vLLM and SGLang"],
  ["gguf_lora", "GGUF LoRA, for llama.cpp's --lora"],
  ["hub", "Hugging Face Hub"],
  ["pytorch_bin", "Merged model, PyTorch pickles"],
  ["adapter", "PEFT folder as an archive"],
];
const TYPES = ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "q5_1", "q5_0", "q4_1", "q4_0", "f16", "bf16"];
const LORA_TYPES = ["f16", "f32"];
// Types that llama.cpp's own quantizer rounds to, and may round by an importance matrix.
const MIXTURES = ["q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m"];
// Bits of a weight with its scales; of a mixture those of a 7B model.
const BITS = { q8_0: 8.5, q6_k: 6.6, q5_k_m: 5.7, q4_k_m: 4.9, iq4_xs: 4.4, q3_k_m: 3.9, q5_1: 6, q5_0: 5.5, q4_1: 5, q4_0: 4.5, f16: 16, bf16: 16, f32: 32 };
const MERGING = ["gguf", "merged", "fp8", "awq", "gptq", "pytorch_bin"];
// Bits of a weight of the other formats, with its scales and the embeddings in 16 bits; else 16.
const FORMAT_BITS = { fp8: 9, awq: 5.3, gptq: 5.3 };

export default function Adapter({ id }) {
  const path = `/adapters/${encodeURIComponent(id)}`;
  const { value: adapter, error } = useLoaded(() => get(path), [id], 5_000);
  const [isDeleting, setDeleting] = useState(false);
  if (!adapter) return html`<${Page} title="Adapter">${error ? html`<${Problem} error=${error} />` : html`<${Loading} />`}<//>`;
  const actions = html`
    <a class="button primary" href=${`#/chat?adapter=${adapter.id}`}>Chat</a>
    <a class="button" href=${`#/playground?adapter=${adapter.id}`}>Compare</a>
    <a class="button" href=${`#/new?continue_from=${adapter.id}&base_model=${encodeURIComponent(adapter.base_model)}`}>Train on</a>
    <${Action} onClick=${() => download(`${path}/download`, `${adapter.name}.zip`)}>Download<//>
    <button type="button" class="danger" onClick=${() => setDeleting(true)}>Delete</button>`;
  return html`<${Page} title=${adapter.name} crumb=${html`<a href="#/adapters">Adapters</a> / ${adapter.id}`} actions=${actions}>
    <div class="stack">
      ${adapter.error && html`<${Problem} error=${adapter.error} />`}
      <${Card}><${Facts} facts=${[
        adapter.state !== "ready" && ["State", html`<${State} state=${adapter.state} />`],
        ["Base model", adapter.base_model],
        ["Base weights", adapter.quantization.load_in_4bit ? `4 bits, ${adapter.quantization.bnb_4bit_quant_type}` : "16 bits"],
        ["Made by", adapter.job ? html`<a href=${`#/job/${adapter.job}`}>its job</a>` : "an import"],
        adapter.step && ["Step", adapter.step],
        ["Size", bytes(adapter.size_bytes)],
        ["Made", moment(adapter.created_at)],
        adapter.serving && ["Served on", `the ${adapter.serving.path} path`],
      ]} />
        ${adapter.serving?.reason && html`<p class="small muted">${`The general path, which is slower, because of: ${adapter.serving.reason}.`}</p>`}
      <//>
      ${adapter.state === "ready" && html`<${Exports} adapter=${adapter} path=${path} />`}
      <div class="grid top">
        ${adapter.job && html`<${Checkpoints} adapter=${adapter} />`}
        ${adapter.state === "ready" && html`<${ModelCard} path=${path} />`}
      </div>
    </div>
    ${isDeleting && html`<${Confirm} title=${`Delete the adapter ${adapter.name}?`} label="Delete it for good" onClose=${() => setDeleting(false)}
      onConfirm=${async () => {
        await remove(path);
        tell(`${adapter.name} is deleted.`, "good");
        location.hash = "#/adapters";
      }}>
      <p>${`Its files (${bytes(adapter.size_bytes)}) go, and can't be brought back. The job that made it stays, with its curves and its log.`}</p>
    <//>`}
  <//>`;
}

/** The other adapters that the same job made. */
function Checkpoints({ adapter }) {
  const { value } = useLoaded(() => getAll("/adapters"), [adapter.id]);
  const others = (value ?? []).filter(({ id, job }) => job === adapter.job && id !== adapter.id);
  if (!others.length) return null;
  return html`<${Card} title="Others of the same job"><ul class="list">
    ${others.map(({ id, name, step, created_at: at }) => html`<li key=${id}><a class="wrap" href=${`#/adapter/${id}`}>${name}</a> <span class="small muted">${step ? `step ${step}` : "the finished one"}, ${ago(at)}</span></li>`)}
  </ul><//>`;
}

/** The README that training wrote next to the weights. */
function ModelCard({ path }) {
  const { value, error } = useLoaded(async () => {
    try {
      return await (await send(`${path}/card`)).text();
    } catch (failure) {
      if (failure instanceof ApiError && failure.status === 404) return "";
      throw failure;
    }
  }, [path]);
  if (value === "") return null;
  return html`<${Card} title="Model card">
    <${Problem} error=${error} />${value == null && !error && html`<${Loading} />`}
    ${value && html`<div class="card-text"><${Markdown} text=${value.replace(/^---\n[\s\S]*?\n---\n/, "")} /></div>`}
  <//>`;
}

function Exports({ adapter, path }) {
  const { value, error, reload } = useLoaded(() => get(`${path}/exports?limit=200`), [path], 2_000);
  return html`<${Card} title="Exports">
    <div class="stack">
      <p class="small muted">The files are loaded and compared with the live adapter before they can be downloaded.</p>
      <${NewExport} adapter=${adapter} path=${path} onMade=${reload} />
      <${Problem} error=${error} />
      ${value?.data.length > 0 && html`<ul class="list">${value.data.map((found) => html`<${Export} key=${found.id} found=${found} onChange=${reload} />`)}</ul>`}
    </div>
  <//>`;
}

function NewExport({ adapter, path, onMade }) {
  const { value: models } = useLoaded(() => get("/models"), []);
  const [form, setForm] = useState({ format: "gguf", types: ["q8_0"], isMeasured: false, loraType: "f16", base: "dequantized", repository: "", content: "adapter", isPrivate: true, revision: "", tags: "", isUpdate: false, priority: 0 });
  const [failure, setFailure] = useState(null);
  const set = (name) => ({ target }) => setForm({ ...form, [name]: target.type === "checkbox" ? target.checked : target.value });
  const toggle = (type) => () => setForm({ ...form, types: TYPES.filter((one) => form.types.includes(one) !== (one === type)) });
  const { format, types } = form;
  const base = models?.data.find(({ name }) => name === adapter.base_model);
  const submit = async (event) => {
    event.preventDefault();
    setFailure(null);
    try {
      await post(`${path}/exports`, toSpec(form));
      await onMade();
    } catch (error) {
      setFailure(error);
    }
  };
  const choice = (name, label, options) => html`<${Field} id=${`export-${name}`} label=${label}>
    <select id=${`export-${name}`} value=${form[name]} onChange=${set(name)}>${options.map(([key, text]) => html`<option key=${key} value=${key}>${text}</option>`)}</select>
  <//>`;
  return html`<form class="stack" onSubmit=${submit}>
    <div class="fields">
      ${choice("format", "Format", FORMATS)}
      ${format === "gguf_lora" && choice("loraType", "Weights", LORA_TYPES.map((type) => [type, `${type}, ${number(BITS[type])} bits`]))}
      ${format === "hub" && html`
        <${Field} id="export-repository" label="Repository" help="owner/name. The worker's HF_TOKEN is used."><input id="export-repository" required placeholder="me/support-bot" autocomplete="off" spellcheck="false" aria-describedby="export-repository-help" value=${form.repository} onInput=${set("repository")} /><//>
        ${choice("content", "What is pushed", [["adapter", "The adapter"], ["merged", "The merged model"]])}
        <${Field} id="export-revision" label="Branch" help="Made where it is missing."><input id="export-revision" placeholder="main" autocomplete="off" spellcheck="false" aria-describedby="export-revision-help" value=${form.revision} onInput=${set("revision")} /><//>
        <${Field} id="export-tags" label="Tags" help="Of the model card, with commas."><input id="export-tags" placeholder="none besides its own" autocomplete="off" spellcheck="false" aria-describedby="export-tags-help" value=${form.tags} onInput=${set("tags")} /><//>
        <div class="field"><label class="check"><input type="checkbox" checked=${form.isPrivate} onChange=${set("isPrivate")} /> Private</label>
          <label class="check"><input type="checkbox" checked=${form.isUpdate} onChange=${set("isUpdate")} /> Push into a repository that exists</label></div>`}
      ${(MERGING.includes(format) || (format === "hub" && form.content === "merged")) && choice("base", "Merged into", [["dequantized", "The base weights it was trained on"], ["original", "The base model's own weights"]])}
    </div>
    ${format === "gguf" && html`<fieldset><legend>Weights</legend><div class="row">
      ${TYPES.map((type) => html`<label key=${type} class="check"><input type="checkbox" checked=${types.includes(type)} onChange=${toggle(type)} /> ${`${type}, ${number(BITS[type])} bits`}</label>`)}
    </div></fieldset>`}
    ${format === "gguf" && types.some((type) => MIXTURES.includes(type)) && html`<label class="check"><input type="checkbox" checked=${form.isMeasured} onChange=${set("isMeasured")} /> Importance matrix from the adapter's dataset</label>`}
    <div class="fields"><${PriorityField} id="export-priority" value=${form.priority} onChange=${(priority) => setForm({ ...form, priority })} /></div>
    <${Problem} error=${failure} />
    <div class="row"><button type="submit" class="primary" disabled=${format === "gguf" && types.length === 0}>Export</button><span class="small muted">${estimate(form, adapter, base)}</span></div>
  </form>`;
}

function toSpec({ format, types, isMeasured, loraType, base, repository, content, isPrivate, revision, tags, isUpdate, priority }) {
  const spec = { format, ...(priority && { priority }) };
  if (format === "gguf_lora") spec.type = loraType;
  if (format === "gguf") {
    spec.type = types.length === 1 ? types[0] : types;
    if (isMeasured && types.some((type) => MIXTURES.includes(type))) spec.importance_matrix = true;
  }
  if (MERGING.includes(format)) spec.base = base;
  if (format === "hub") {
    const words = tags.split(",").map((tag) => tag.trim()).filter(Boolean);
    Object.assign(spec, { repository, content, private: isPrivate, revision: revision.trim() || null, tags: words, update: isUpdate, ...(content === "merged" && { base }) });
  }
  return spec;
}

/** About how large the files become. The base model's files have 16 bits a weight. */
function estimate({ format, types, content }, adapter, base) {
  const isMerged = MERGING.includes(format) || (format === "hub" && content === "merged");
  if (!isMerged) return `About ${bytes(adapter.size_bytes)}.`;
  if (!base?.size_bytes) return "Its size is that of the base model, which is not in the models folder.";
  const bits = format === "gguf" ? types.reduce((sum, type) => sum + BITS[type], 0) : (FORMAT_BITS[format] ?? 16);
  return `About ${bytes((base.size_bytes * bits) / 16)}.`;
}

function Export({ found, onChange }) {
  const { id, spec, state, phase, progress, agreement, files, error, notes } = found;
  const isOn = ["queued", "running"].includes(state);
  const act = (verb) => async () => {
    await post(`/exports/${id}/${verb}`);
    await onChange();
  };
  const fetchFile = (name) => download(`/exports/${id}/download${name ? `?file=${encodeURIComponent(name)}` : ""}`, name ?? `${found.adapter_name}-${spec.format}.tar`);
  return html`<li class="stack tight export">
    <div class="row apart"><strong>${[spec.format.replaceAll("_", " "), ...[spec.type ?? []].flat(), spec.repository].filter(Boolean).join(" ")}</strong><${State} state=${state} phase=${phase} /></div>
    ${state === "queued" && html`<p class="small muted">${found.queue_position && placeInLine(found)}</p><${WaitingPriority} path=${`/exports/${id}`} work=${found} onChange=${onChange} />`}
    ${state === "running" && html`<progress value=${progress} max="1" aria-label=${`Progress of ${id}`}></progress>`}
    ${error && html`<${Problem} error=${error} />`}
    ${agreement && html`<p class="small muted">${`${percent(agreement.greedy_match)} of the next tokens as the live adapter, mean divergence ${number(agreement.mean_kl, 2)} nats; the base model alone is ${number(agreement.adapter_kl, 2)} away.`}</p>`}
    ${notes.map((note) => html`<p key=${note} class="small muted">${note}</p>`)}
    <div class="row">
      ${state === "succeeded" && files.map(({ name, size_bytes: size, agreement: own }) => html`<${Action} key=${name} class="small" title=${own && `Mean divergence ${number(own.mean_kl, 2)} nats`} onClick=${() => fetchFile(name)}>${`${name}, ${bytes(size)}`}<//>`)}
      ${files.length > 1 && html`<${Action} class="small" onClick=${() => fetchFile(null)}>All as a tar<//>`}
      ${found.url && html`<a class="button small" href=${found.url} rel="noreferrer">On the Hub</a>`}
      ${isOn && html`<${Action} class="small danger" onClick=${act("cancel")}>Cancel<//>`}
      ${["failed", "cancelled"].includes(state) && html`<${Action} class="small" onClick=${act("retry")}>Retry<//>`}
      ${!isOn && html`<${Action} class="small danger" aria-label=${`Delete the export ${id}`} onClick=${async () => (await remove(`/exports/${id}`), await onChange())}>Delete<//>`}
      <span class="small muted">${ago(found.created_at)}</span>
    </div>
  </li>`;
}
