// Base models: those that are here, those of the Hub, downloads and deletion.

import { useState } from "../vendor/htm-preact.js";
import { get, post, remove } from "./api.js";
import { ago, bytes, count, moment, plural } from "./format.js";
import { about, Fit } from "./model_fit.js";
import { Action, Card, Confirm, Empty, Field, html, Loading, Page, Problem, State, tell, useLoaded } from "./ui.js";

const RUNNING = ["queued", "running"];
const SOON = 400;

export default function Models() {
  const { value, error, reload } = useLoaded(readAll, [], 2_000);
  const [doomed, setDoomed] = useState(null);
  const [hidden, setHidden] = useState([]);
  const downloads = (value?.downloads ?? []).filter(({ id, state, base_model: name }, place, all) =>
    RUNNING.includes(state) || (state === "failed" && !hidden.includes(id) && all.findIndex((one) => one.base_model === name) === place));
  const download = async (name) => {
    await post("/models/downloads", { base_model: name });
    await reload();
  };
  return html`<${Page} title="Models">
    <div class="stack">
      <${Card} title="Find one on the Hub"><${Search} onDownload=${download} here=${(value?.models ?? []).filter(({ state }) => state !== "on_hub").map(({ name }) => name)} running=${downloads.filter(({ state }) => RUNNING.includes(state)).map((one) => one.base_model)} /><//>
      ${downloads.length > 0 && html`<${Card} title="Downloads"><ul class="list">${downloads.map((one) => html`<${Download} key=${one.id} download=${one} onChange=${reload} onAgain=${() => download(one.base_model)} onHide=${() => setHidden([...hidden, one.id])} />`)}</ul><//>`}
      <${Problem} error=${error} />
      ${!value && !error && html`<${Loading} />`}
      ${value?.models.length === 0 && html`<${Empty} title="No base model is here yet"><p>Download one from the Hub, or put a Hugging Face folder into the models folder. A job that names a model of the Hub downloads it itself.</p><//>`}
      ${value?.models.length > 0 && html`<${Card} title="Here"><table class="cards-if-narrow">
        <caption class="visually-hidden">Base models</caption>
        <thead><tr><th scope="col">Name</th><th scope="col">Memory</th><th scope="col">Size</th><th scope="col">Context</th><th scope="col">Last used</th><th scope="col">Needed by</th><th scope="col"><span class="visually-hidden">What to do</span></th></tr></thead>
        <tbody>${value.models.map((model) => html`<${Row} key=${model.name} model=${model} onDelete=${() => setDoomed(model)} />`)}</tbody>
      </table><//>`}
    </div>
    ${doomed && html`<${Confirm} title=${`Delete ${doomed.name}?`} label="Delete it from the disk" onClose=${() => setDoomed(null)}
      onConfirm=${async () => {
        await remove(`/models/${doomed.name}`);
        tell(`${doomed.name} is deleted: ${bytes(doomed.size_bytes)}.`, "good");
        await reload();
      }}>
      <p>${`It takes ${bytes(doomed.size_bytes)}. ${doomed.needed_by.adapters ? `${plural(doomed.needed_by.adapters, "adapter")} ${doomed.needed_by.adapters === 1 ? "needs" : "need"} it: ` : ""}It is downloaded again when a job or a request needs it.`}</p>
    <//>`}
  <//>`;
}

async function readAll() {
  const [models, downloads] = await Promise.all([get("/models"), get("/models/downloads")]);
  return { models: models.data, downloads: downloads.data };
}

function Row({ model, onDelete }) {
  const { name, state, source, needed_by: needs } = model;
  const work = needs.jobs.length + needs.exports.length + needs.imports.length;
  const isDownloaded = source === "hub" && model.size_bytes;
  return html`<tr>
    <td><strong class="wrap">${name}</strong><div class="small muted">${model.architecture ?? ""}</div><${State} state=${state} /></td>
    <td data-label="Memory">${state !== "on_hub" || isDownloaded ? html`<${Fit} name=${name} />` : ""}</td>
    <td data-label="Size" class="numbers">${model.size_bytes ? bytes(model.size_bytes) : ""}${isDownloaded && state === "on_hub" ? html`<div class="small muted">not whole yet</div>` : ""}</td>
    <td data-label="Context" class="numbers">${model.context_length ? count(model.context_length) : ""}</td>
    <td data-label="Last used" title=${moment(model.used_at)}>${model.used_at ? ago(model.used_at) : ""}</td>
    <td data-label="Needed by">${[work && plural(work, "unfinished work", "unfinished works"), needs.adapters && plural(needs.adapters, "adapter")].filter(Boolean).join(", ")}</td>
    <td><div class="row">
      <a class="button small" aria-label=${`Train ${name}`} href=${`#/new?base_model=${encodeURIComponent(name)}`}>Train</a>
      ${isDownloaded && html`<button type="button" class="small danger" aria-label=${`Delete ${name}`} onClick=${onDelete}>Delete</button>`}
    </div></td>
  </tr>`;
}

function Download({ download, onChange, onAgain, onHide }) {
  const { id, base_model: name, state, done_bytes: done, total_bytes: total, error } = download;
  return html`<li class="stack tight">
    <div class="row apart"><span><strong class="wrap">${name}</strong> <${State} state=${state} /></span>
      <div class="row">${error
        ? html`<${Action} class="small" aria-label=${`Try ${name} again`} onClick=${onAgain}>Try again<//><button type="button" class="small plain" aria-label=${`Hide ${name}`} onClick=${onHide}>Hide</button>`
        : html`<${Action} class="small danger" aria-label=${`Cancel the download of ${name}`} onClick=${async () => {
          await post(`/models/downloads/${id}/cancel`);
          await onChange();
        }}>Cancel<//>`}</div></div>
    ${error ? html`<div class="note bad small"><strong>${error.message}</strong> ${error.hint}</div>`
      : html`<progress aria-label=${`Download of ${name}`} max=${total ?? 1} value=${total ? done : 0}></progress>
        <p class="small muted numbers">${total ? `${bytes(done)} of ${bytes(total)}` : state === "queued" ? "Waits for a worker." : "Begins."}</p>`}
  </li>`;
}

/** Models of the Hub, searched as the person types. */
function Search({ onDownload, here, running }) {
  const [words, setWords] = useState("");
  const query = words.trim();
  const { value, error, isLoading } = useLoaded(() => query && search(query), [query], 0, SOON);
  return html`<div class="stack">
    <${Field} id="hub-words" label="Name" help="Models with safetensors weights, the most downloaded first.">
      <input id="hub-words" type="search" autocomplete="off" spellcheck="false" placeholder="qwen3 0.6b" aria-describedby="hub-words-help" value=${words} onInput=${({ target }) => setWords(target.value)} />
    <//>
    <div role="status" class="stack">
      ${query && isLoading && html`<${Loading} />`}
      <${Problem} error=${error} />
      ${query && value?.message && html`<div class="note warn">${value.message} ${"Models that are here work without the Hub."}</div>`}
      ${query && value?.state === "ok" && value.data.length === 0 && html`<p class="muted">The Hub has no such model that may be trained.</p>`}
    </div>
    ${query && value?.data?.length > 0 && html`<ul class="list">${value.data.map((model) => html`<li key=${model.name} class="row apart">
      <div><strong class="wrap">${model.name}</strong><div class="small muted">${about(model)}</div><${Fit} name=${model.name} /></div>
      <div class="row">
        <a class="button small" aria-label=${`Train ${model.name}`} href=${`#/new?base_model=${encodeURIComponent(model.name)}`}>Train</a>
        ${here.includes(model.name) ? html`<span class="state ready">here</span>`
          : html`<${Action} class="small" aria-label=${`${running.includes(model.name) ? "Downloading" : "Download"} ${model.name}`} disabled=${running.includes(model.name)} onClick=${() => onDownload(model.name)}>${running.includes(model.name) ? "Downloading" : "Download"}<//>`}
      </div>
    </li>`)}</ul>`}
  </div>`;
}

export const search = (query, limit = 20) => get(`/models/search?query=${encodeURIComponent(query)}&limit=${limit}`);
