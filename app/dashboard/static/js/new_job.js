// A new job: rows, a base model, the recipe's settings, and what they would do, before the button.

import { useEffect, useMemo, useState } from "../vendor/htm-preact.js";
import { ApiError, get, getAll, post, saveText } from "./api.js";
import { AddDataset } from "./dataset_add.js";
import { count } from "./format.js";
import { ModelPicker } from "./model_picker.js";
import { Preflight, usePreflight } from "./preflight.js";
import { Preview } from "./preview.js";
import { ESSENTIAL, fromSpec, labelOf, ofMethod, readFields, Setting, toSpec } from "./spec_form.js";
import { Action, Card, Field, html, Loading, Page, Problem, useLoaded } from "./ui.js";
import { toYaml } from "./yaml.js";

// These have a place of their own.
const PLACED = ["base_model", "dataset", "validation_dataset", "continue_from", "name"];
const GROUPS = [["dpo", "Settings of DPO"], ["kto", "Settings of KTO"], ["orpo", "Settings of ORPO"], ["training", "Advanced training settings"], ["lora", "Advanced LoRA settings"], ["quantization", "Advanced quantization settings"], ["resources", "Several GPUs"], ["tracking", "Trackers", "The worker has their packages and keys."], ["push_to_hub", "Push to the Hub", "Once the job has succeeded, with the worker's HF_TOKEN. Nothing is pushed without a repository."], ["", "Priority, chat template and metadata"]];
// The group of a field, where it is not its own.
const GROUP_OF = { report_to: "tracking" };

// The methods that learn a dataset of preferences, the usual one first; `sft` learns any other.
const METHODS_OF = { comparisons: ["dpo", "orpo", "kto"], labelled_answers: ["kto"] };

const NAME_HELP = "The adapter will be called so. Letters, digits, dots, dashes and underscores.";

export default function NewJob({ query }) {
  const { value, error } = useLoaded(() => readAll(query), []);
  if (!value) return html`<${Page} title="New job">${error ? html`<${Problem} error=${error} />` : html`<${Loading} />`}<//>`;
  return html`<${Form} ...${value} />`;
}

async function readAll(query) {
  const from = query.get("from");
  const [fields, presets, models, adapters, source] = await Promise.all([
    readFields(),
    get("/dashboard/presets.json"),
    get("/models"),
    getAll("/adapters"),
    from && get(`/jobs/${encodeURIComponent(from)}`),
  ]);
  const start = source ? fromSpec(fields, source.spec) : {};
  for (const name of ["dataset", "base_model", "continue_from"]) if (query.has(name)) start[name] = query.get(name);
  if (!start.base_model && models.data.length) start.base_model = (models.data.find(({ loaded }) => loaded) ?? models.data[0]).name;
  return { fields, presets, models, adapters, start };
}

function Form({ fields: all, presets, models, adapters, start }) {
  const [values, setValues] = useState(start);
  const fields = useMemo(() => ofMethod(all, values.method), [values.method]);
  const [failure, setFailure] = useState(null);
  const change = (path, text) => {
    setFailure(null);
    setValues((before) => ({ ...before, [path]: text }));
  };
  const spec = useMemo(() => toSpec(fields, values), [fields, values]);
  const isWhole = Boolean(spec.dataset && spec.base_model);
  const looked = usePreflight(isWhole ? spec : null);
  const wrong = { ...findWrong(failure ?? looked.error), ...findWrongName(fields, values.name) };
  const key = useMemo(makeKey, [JSON.stringify(spec)]);
  const submit = async () => {
    try {
      const job = await post("/jobs", spec, { headers: { "idempotency-key": key } });
      location.hash = `#/job/${job.id}`;
    } catch (error) {
      setFailure(error);
      document.querySelector(`[name="${CSS.escape(error.param ?? "")}"]`)?.focus();
    }
  };
  const applyPreset = (preset) => {
    setFailure(null);
    const placed = Object.entries(values).filter(([path]) => PLACED.includes(path));
    setValues({ ...Object.fromEntries(placed), ...fromSpec(all, preset.spec) });
  };
  const shared = { values, onChange: change, wrong };
  return html`<${Page} title="New job" crumb=${html`<a href="#/jobs">Jobs</a>`}>
    <div class="columns">
      <div class="stack">
        <${Rows} ...${shared} />
        <${Base} ...${shared} models=${models} adapters=${adapters} />
        <${Settings} ...${shared} fields=${fields} presets=${presets} onPreset=${applyPreset} />
        ${isWhole && html`<${Card} title="Rows as the model will see them">
          <${Preview} dataset=${spec.dataset} baseModel=${spec.base_model} assistantOnly=${spec.training?.assistant_only_loss ?? false} maxLength=${spec.training?.max_seq_length} />
        <//>`}
      </div>
      <div class="sticky"><${Card} title="What it would do">
        <div class="stack">
          <${Preflight} ...${looked} />
          ${failure && failure.message !== looked.error?.message && html`<${Problem} error=${failure} />`}
          <${Action} class="primary" disabled=${!isWhole} onClick=${submit}>Start the job<//>
          <${Action} class="small" onClick=${() => saveText(toYaml(spec), `${spec.name ?? "job"}.yaml`)}>Save as YAML<//>
        </div>
      <//></div>
    </div>
  <//>`;
}

/** `{ path: message }` of the field that an error is about. */
const findWrong = (error) => (error instanceof ApiError && error.param ? { [error.param]: error.message } : {});

/** The preflight does not see the name: it would be asked again at each key. */
function findWrongName(fields, name) {
  const { pattern } = fields.find(({ path }) => path === "name");
  if (!name || new RegExp(pattern).test(name)) return {};
  const close = name.trim().replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "");
  return { name: `A name has letters, digits, dots, dashes and underscores, no spaces.${close ? ` For example ${close}.` : ""}` };
}

/** A retry of the same body makes no second job. */
const makeKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function Rows({ values, onChange, wrong }) {
  const { value: datasets, reload, error } = useLoaded(() => getAll("/datasets"), [], 3_000);
  const [isAdding, setAdding] = useState(false);
  const added = async (dataset) => {
    await reload();
    onChange("dataset", dataset.id);
    setAdding(false);
  };
  const chosen = datasets?.find(({ id }) => id === values.dataset);
  useEffect(() => {
    const suited = METHODS_OF[chosen?.format] ?? ["sft"];
    if (chosen?.format && !suited.includes(values.method || "sft")) onChange("method", suited[0]);
  }, [chosen?.id, chosen?.format]);
  const isOpen = isAdding || datasets?.length === 0;
  const options = (datasets ?? []).map(({ id, name, rows, state }) => html`<option key=${id} value=${id}>${`${name} · ${state === "ready" ? `${count(rows)} rows` : state} · ${id.slice(-4)}`}</option>`);
  return html`<${Card} title="Rows to learn from" actions=${datasets?.length > 0 && html`<button type="button" class="small" aria-expanded=${isAdding} onClick=${() => setAdding(!isAdding)}>${isAdding ? "Choose one that is here" : "Add a dataset"}</button>`}>
    <div class="stack">
      <${Problem} error=${error} />
      ${isOpen && html`<${AddDataset} onAdded=${added} />`}
      <div class="fields">
        <${Field} id="spec-dataset" label="Dataset" wrong=${wrong.dataset}>
          <select id="spec-dataset" name="dataset" value=${values.dataset ?? ""} aria-invalid=${wrong.dataset ? "true" : undefined} onChange=${({ target }) => onChange("dataset", target.value)}>
            <option value="">Choose a dataset</option>${options}
          </select>
        <//>
        <${Field} id="spec-validation-dataset" label="Evaluate on" help="Or hold some rows out, below." wrong=${wrong.validation_dataset}>
          <select id="spec-validation-dataset" name="validation_dataset" value=${values.validation_dataset ?? ""} aria-describedby="spec-validation-dataset-help" onChange=${({ target }) => onChange("validation_dataset", target.value)}>
            <option value="">No other dataset</option>${options}
          </select>
        <//>
      </div>
    </div>
  <//>`;
}

function Base({ values, onChange, wrong, models, adapters }) {
  const set = (path) => ({ target }) => onChange(path, target.value);
  const help = models.any_hub_model ? "One that is here, or one of the Hub: type a part of its name." : "One that is allowed here.";
  const continued = (event) => {
    const adapter = adapters.find(({ id }) => id === event.target.value);
    onChange("continue_from", event.target.value);
    if (adapter) onChange("base_model", adapter.base_model);
  };
  return html`<${Card} title="Base model and name"><div class="fields">
    <${Field} id="spec-base-model" label="Base model" help=${help} wrong=${wrong.base_model}>
      <${ModelPicker} id="spec-base-model" name="base_model" models=${models.data} value=${values.base_model ?? ""} aria-describedby="spec-base-model-help" aria-invalid=${wrong.base_model ? "true" : undefined} onChange=${(name) => onChange("base_model", name)} />
    <//>
    <${Field} id="spec-name" label="Name" help=${NAME_HELP} wrong=${wrong.name}>
      <input id="spec-name" name="name" maxlength="64" autocomplete="off" spellcheck="false" placeholder="support-bot" value=${values.name ?? ""} aria-describedby="spec-name-help" aria-invalid=${wrong.name ? "true" : undefined} onInput=${set("name")} />
    <//>
    <${Field} id="spec-continue-from" label="Start from" help="An adapter's weights, or none." wrong=${wrong.continue_from}>
      <select id="spec-continue-from" name="continue_from" value=${values.continue_from ?? ""} aria-describedby="spec-continue-from-help" onChange=${continued}>
        <option value="">A new adapter</option>${adapters.map(({ id, name }) => html`<option key=${id} value=${id}>${name}</option>`)}
      </select>
    <//>
  </div><//>`;
}

function Settings({ fields, presets, onPreset, ...shared }) {
  const [chosen, setChosen] = useState("");
  const choose = ({ target }) => {
    setChosen(target.value);
    onPreset(presets.find(({ name }) => name === target.value) ?? { spec: {} });
  };
  const place = (list) => html`<div class="fields">${list.map((field) => html`<${Setting} key=${field.path} field=${field} values=${shared.values} onChange=${shared.onChange} wrong=${shared.wrong[field.path]} />`)}</div>`;
  const essential = ESSENTIAL.map((path) => fields.find((field) => field.path === path)).filter(Boolean);
  const rest = fields.filter(({ path }) => !ESSENTIAL.includes(path) && !PLACED.includes(path));
  return html`<${Card} title="Settings"><div class="stack">
    <${Field} id="preset" label="Preset" help=${presets.find(({ name }) => name === chosen)?.title ?? "The values of the reference recipe. Change what you like."}>
      <select id="preset" value=${chosen} aria-describedby="preset-help" onChange=${choose}>
        <option value="">Reference recipe</option>
        ${presets.filter(({ name }) => name !== "recipe").map(({ name }) => html`<option key=${name} value=${name}>${labelOf(name.replaceAll("-", "_"))}</option>`)}
      </select>
    <//>
    ${place(essential)}
    ${GROUPS.map(([group, title, note]) => {
      const found = rest.filter((field) => (GROUP_OF[field.path] ?? field.group) === group);
      return found.length > 0 && html`<details key=${group} open=${group === shared.values.method || found.some(({ path }) => shared.wrong[path]) || undefined}><summary>${title}</summary><div class="stack tight">${note && html`<p class="small muted">${note}</p>`}${place(found)}</div></details>`;
    })}
  </div><//>`;
}
