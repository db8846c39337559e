// The form of a new evaluation: rows, models, graders.

import { useState } from "../vendor/htm-preact.js";
import { get, getAll, post } from "./api.js";
import { plural } from "./format.js";
import { PriorityField } from "./priority.js";
import { Action, Card, Field, html, Loading, Page, Problem, Tabs, useLoaded } from "./ui.js";

const ANSWER = "{{sample.output_text}}";
const REFERENCE = "{{item.reference}}";
const similar = (metric) => ({ type: "text_similarity", name: metric, input: ANSWER, reference: REFERENCE, evaluation_metric: metric });
const GRADERS = [
  ["rouge_l", "ROUGE-L", "Longest common words with the reference, from 0 to 1.", similar("rouge_l")],
  ["exact", "Exact match", "The answer is the reference, letter by letter.", { type: "string_check", name: "exact", input: ANSWER, reference: REFERENCE, operation: "eq" }],
  ["contains", "Contains", "The answer contains the reference, in any case.", { type: "string_check", name: "contains", input: ANSWER, reference: REFERENCE, operation: "ilike" }],
  ["fuzzy_match", "Fuzzy match", "How few letters differ from the reference.", similar("fuzzy_match")],
  ["bleu", "BLEU", "Groups of words that the reference has too.", similar("bleu")],
  ["tool_call", "Function calls", "The functions of the reference are called, with its arguments.", { type: "tool_call", name: "tool_call", reference: "{{item.tool_calls}}" }],
  ["perplexity", "Perplexity", "How surprising the model finds the reference; lower is better.", { type: "perplexity", name: "perplexity", reference: REFERENCE }],
];
const RUBRIC = "Question: {{item.input}}\nExpected: {{item.reference}}\nAnswer: {{sample.output_text}}\n\nHow well does the answer say what is expected? 1: fully, 0: not at all.";

export default function NewEvaluation({ query }) {
  const { value, error } = useLoaded(readChoices, []);
  return html`<${Page} title="New evaluation" crumb=${html`<a href="#/evaluations">Evaluations</a>`}>
    <${Problem} error=${error} />
    ${!value ? !error && html`<${Loading} />` : html`<${Form} choices=${value} query=${query} />`}
  <//>`;
}

async function readChoices() {
  const [models, adapters, datasets, jobs] = await Promise.all([get("/models"), getAll("/adapters"), getAll("/datasets"), getAll("/jobs", 400)]);
  return {
    bases: models.data.filter(({ state }) => state !== "on_hub").map(({ name }) => name),
    adapters: adapters.filter(({ state }) => !state || state === "ready"),
    datasets: datasets.filter(({ state }) => state === "ready"),
    jobs: jobs.filter(({ spec }) => spec.validation_dataset || spec.training.validation_split > 0),
  };
}

/** What is chosen at first: the adapter of the address with its base model, on what its job held out. */
function begin({ adapters, bases, datasets, jobs }, query) {
  const adapter = adapters.find(({ id }) => id === query.get("adapter"));
  const job = jobs.find(({ id }) => id === (query.get("job") ?? adapter?.job));
  const base = adapter && (bases.includes(adapter.base_model) || adapter.base_model.includes("/")) ? [adapter.base_model] : [];
  return {
    name: "",
    source: job || (!datasets.length && jobs.length) ? "held_out_of" : "dataset",
    dataset: query.get("dataset") ?? datasets[0]?.id ?? "",
    held_out_of: job?.id ?? jobs[0]?.id ?? "",
    bases: base,
    adapters: adapter ? [adapter.id] : [],
    graders: ["rouge_l"],
    judge: "",
    rubric: RUBRIC,
    more: "",
    limit: 100,
    seed: 0,
    tokens: 256,
    temperature: 0,
    priority: 0,
  };
}

function Form({ choices, query }) {
  const [form, setForm] = useState(() => begin(choices, query));
  const [error, setError] = useState(null);
  const change = (part) => setForm({ ...form, ...part });
  const toggle = (list, key) => change({ [list]: form[list].includes(key) ? form[list].filter((one) => one !== key) : [...form[list], key] });
  const value = (name, read = String) => ({ id: `evaluation-${name}`, value: form[name], onInput: ({ target }) => change({ [name]: read(target.value) }) });
  const bases = [...new Set([...choices.bases, ...form.bases])];
  const submit = async () => {
    setError(null);
    try {
      const made = await post("/evaluations", makeRequest(form), { headers: { "idempotency-key": crypto.randomUUID?.() ?? `${Math.random()}` } });
      location.hash = `#/evaluation/${made.id}`;
    } catch (problem) {
      setError(problem);
    }
  };
  return html`<form class="stack" onSubmit=${(event) => event.preventDefault()}>
    <${Card} title="Rows"><div class="stack">
      <${Tabs} label="Where rows come from" value=${form.source} options=${[["dataset", "Of a dataset"], ["held_out_of", "Held out of a job"]]} onChange=${(source) => change({ source })} />
      ${form.source === "dataset"
        ? html`<${Field} id="evaluation-dataset" label="Dataset" help="The last answer of a row is its reference.">
          <select ...${value("dataset")} onChange=${({ target }) => change({ dataset: target.value })} aria-describedby="evaluation-dataset-help">${choices.datasets.map(({ id, name, rows }) => html`<option key=${id} value=${id}>${`${name}, ${plural(rows, "row")}`}</option>`)}</select><//>`
        : html`<${Field} id="evaluation-held_out_of" label="Job" help=${choices.jobs.length ? "Its adapter has never seen these rows." : "No job held rows out: train one with a validation share."}>
          <select ...${value("held_out_of")} onChange=${({ target }) => change({ held_out_of: target.value })} aria-describedby="evaluation-held_out_of-help">${choices.jobs.map(({ id, name }) => html`<option key=${id} value=${id}>${name}</option>`)}</select><//>`}
      <div class="grid four">
        <${Field} id="evaluation-limit" label="Most rows"><input type="number" min="1" max="10000" ...${value("limit", Number)} /><//>
        <${Field} id="evaluation-seed" label="Seed"><input type="number" min="0" ...${value("seed", Number)} /><//>
      </div>
    </div><//>
    <${Card} title="Models"><div class="grid">
      <fieldset><legend>Base models</legend>${bases.map((name) => html`<label key=${name} class="check"><input type="checkbox" checked=${form.bases.includes(name)} onChange=${() => toggle("bases", name)} /> <span class="wrap">${name}</span></label>`)}${bases.length === 0 && html`<p class="muted">None is here.</p>`}</fieldset>
      <fieldset><legend>Adapters</legend>${choices.adapters.map(({ id, name, step }) => html`<label key=${id} class="check"><input type="checkbox" checked=${form.adapters.includes(id)} onChange=${() => toggle("adapters", id)} /> <span class="wrap">${name}</span>${step != null && html` <span class="small muted">checkpoint</span>`}</label>`)}${choices.adapters.length === 0 && html`<p class="muted">None yet.</p>`}</fieldset>
    </div><//>
    <${Card} title="Graders"><div class="stack">
      <div class="grid">${GRADERS.map(([key, name, help]) => html`<label key=${key} class="check"><input type="checkbox" checked=${form.graders.includes(key)} onChange=${() => toggle("graders", key)} /> <span>${name} <span class="small muted">${help}</span></span></label>`)}</div>
      <${Field} id="evaluation-judge" label="A model that grades" help="An adapter or base model of this box, or of the endpoint in TUNESMITH_JUDGE_URL; empty: none.">
        <input ...${value("judge")} autocomplete="off" spellcheck="false" aria-describedby="evaluation-judge-help" /><//>
      ${form.judge.trim() && html`<${Field} id="evaluation-rubric" label="What it is asked"><textarea rows="6" ...${value("rubric")}></textarea><//>`}
      <details><summary>Advanced settings</summary><div class="stack">
        <${Field} id="evaluation-more" label="More graders, as JSON" help="A list of graders as in POST /evaluations."><textarea rows="4" class="mono" spellcheck="false" ...${value("more")} aria-describedby="evaluation-more-help"></textarea><//>
        <div class="grid four">
          <${Field} id="evaluation-tokens" label="Max new tokens"><input type="number" min="1" max="32768" ...${value("tokens", Number)} /><//>
          <${Field} id="evaluation-temperature" label="Temperature"><input type="number" min="0" max="2" step="0.1" ...${value("temperature", Number)} /><//>
          <${Field} id="evaluation-name" label="Name"><input maxlength="255" ...${value("name")} /><//>
          <${PriorityField} id="evaluation-priority" value=${form.priority} onChange=${(priority) => change({ priority })} />
        </div>
      </div></details>
    </div><//>
    <${Problem} error=${error} />
    <div class="row"><${Action} class="primary" disabled=${form.bases.length + form.adapters.length === 0} onClick=${submit}>Evaluate<//>${form.bases.length + form.adapters.length === 0 && html`<span class="small muted">Choose a model first.</span>`}</div>
  </form>`;
}

/** The body of POST /evaluations. Throws where the JSON of more graders can't be read. */
function makeRequest(form) {
  const graders = GRADERS.filter(([key]) => form.graders.includes(key)).map(([, , , grader]) => grader);
  const judge = form.judge.trim();
  if (judge) graders.push({ type: "score_model", name: "judge", model: judge, input: [{ role: "user", content: form.rubric }] });
  return {
    ...(form.name.trim() && { name: form.name.trim() }),
    [form.source]: form[form.source],
    models: [...form.bases.map((name) => ({ base_model: name })), ...form.adapters.map((id) => ({ adapter: id }))],
    graders: [...graders, ...readMore(form.more)],
    sampling: { max_new_tokens: form.tokens, temperature: form.temperature },
    limit: form.limit,
    seed: form.seed,
    ...(form.priority && { priority: form.priority }),
  };
}

function readMore(text) {
  if (!text.trim()) return [];
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) ? found : [found];
  } catch (error) {
    throw new Error(`“More graders” is not JSON: ${error.message}`);
  }
}
