// One dataset: what it is, what is not used of it, and its rows, as they are or as a base model sees them.

import { useState } from "../vendor/htm-preact.js";
import { download, get, remove } from "./api.js";
import { bytes, count, moment, plural } from "./format.js";
import { Preview } from "./preview.js";
import { RowContent } from "./rows.js";
import { Action, Card, Confirm, Facts, Field, html, Loading, Page, Problem, State, Tabs, tell, useLoaded } from "./ui.js";

const ROWS = 5;
const FORMATS = { messages: "conversations", conversations: "conversations", instruction: "questions and answers", prompt_completion: "prompts and completions", text: "texts", comparisons: "comparisons of answers", labelled_answers: "answers labelled good or bad" };

export default function Dataset({ id }) {
  const path = `/datasets/${encodeURIComponent(id)}`;
  const { value: dataset, error } = useLoaded(() => get(path), [id], 5_000);
  const [view, setView] = useState("rows");
  const [isDeleting, setDeleting] = useState(false);
  if (!dataset) return html`<${Page} title="Dataset">${error ? html`<${Problem} error=${error} />` : html`<${Loading} />`}<//>`;
  const isReady = dataset.state === "ready";
  const actions = html`
    ${isReady && html`<a class="button primary" href=${`#/new?dataset=${dataset.id}`}>Train</a>
      <${Action} onClick=${() => download(`${path}/download`, `${dataset.id}.jsonl`)}>Download<//>`}
    <button type="button" class="danger" onClick=${() => setDeleting(true)}>Delete</button>`;
  return html`<${Page} title=${dataset.name} crumb=${html`<a href="#/datasets">Datasets</a> / ${dataset.id}`} actions=${actions}>
    <div class="stack">
      <${Problem} error=${dataset.error} />
      <${Card}><${Facts} facts=${[
        !isReady && ["State", html`<${State} state=${dataset.state} />`],
        ["Rows", count(dataset.rows)],
        dataset.format && ["They are", html`${FORMATS[dataset.format]} <span class="api-name">${dataset.format}</span>`],
        isReady && ["Size", bytes(dataset.size_bytes)],
        dataset.columns.length > 0 && ["Columns", dataset.columns.join(", ")],
        ["Came from", dataset.hub ? `Hub: ${dataset.hub.hub_dataset}` : "an upload"],
        ["Added", moment(dataset.created_at)],
      ]} /><//>
      <${UnusedFields} fields=${dataset.unused_fields} rows=${dataset.rows} />
      <${LeftOut} dataset=${dataset} />
      ${isReady && html`<${Card} title="Rows" actions=${html`<${Tabs} label="Show rows" value=${view} options=${[["rows", "As they are"], ["tokens", "As tokens"]]} onChange=${setView} />`}>
        ${view === "rows" ? html`<${Rows} path=${path} />` : html`<${Tokens} dataset=${dataset} />`}
      <//>`}
    </div>
    ${isDeleting && html`<${DeleteDataset} dataset=${dataset} onClose=${() => setDeleting(false)} onDeleted=${() => (location.hash = "#/datasets")} />`}
  <//>`;
}

/** Asks whether a dataset is to be deleted, and deletes it. */
export const DeleteDataset = ({ dataset, onClose, onDeleted }) => html`<${Confirm} title=${`Delete the dataset ${dataset.name}?`} label="Delete it for good" onClose=${onClose}
  onConfirm=${async () => {
    await remove(`/datasets/${dataset.id}`);
    tell(`${dataset.name} is deleted.`, "good");
    await onDeleted();
  }}>
  <p>${`Its ${plural(dataset.rows, "row")} go, and can't be brought back. Adapters that were made from it stay and go on answering; their jobs can't be retried or cloned with the same rows.`}</p>
<//>`;

function UnusedFields({ fields, rows }) {
  if (!fields.length) return null;
  return html`<${Card} title="Fields that are not used"><table>
    <caption class="visually-hidden">Fields from which nothing is learned</caption>
    <thead><tr><th scope="col">Field</th><th scope="col">Rows</th><th scope="col">First lines</th></tr></thead>
    <tbody>${fields.map(({ field, rows: having, changes_learning: changes, lines }) => html`<tr key=${field}><td class="wrap"><span class="mono">${field}</span>${changes && html`<div class="small"><strong>changes what is learned</strong></div>`}</td><td class="numbers">${count(having)} of ${count(rows)}</td><td class="wrap">${lines.join(", ")}</td></tr>`)}</tbody>
  </table><//>`;
}

const LeftOut = ({ dataset }) =>
  dataset.problem_count > 0 && html`<${Card} title=${`${plural(dataset.problem_count, "row")} left out`}>
    <ul class="bullets">${dataset.problems.map(({ line, message }) => html`<li key=${line} class="wrap">Line ${line}: ${message}</li>`)}</ul>
  <//>`;

function Rows({ path }) {
  const [before, setBefore] = useState([0]);
  const after = before.at(-1);
  const { value, error, isLoading } = useLoaded((signal) => get(`${path}/rows?limit=${ROWS}&after=${after}`, { signal }), [path, after]);
  if (error) return html`<${Problem} error=${error} />`;
  if (isLoading) return html`<${Loading} />`;
  return html`<div class="stack">
    ${value.data.map(({ line, row }) => html`<section key=${line} class="stack tight" aria-label=${`Row of line ${line}`}><h3>Line ${line}</h3><${RowContent} row=${row} /></section>`)}
    <div class="row">
      ${before.length > 1 && html`<button type="button" class="small" onClick=${() => setBefore(before.slice(0, -1))}>Previous rows</button>`}
      ${value.next != null && html`<button type="button" class="small" onClick=${() => setBefore([...before, value.next])}>Next rows</button>`}
    </div>
  </div>`;
}

/** The rows in the tokens of the chosen base model. */
function Tokens({ dataset }) {
  const { value, error } = useLoaded(() => get("/models"), []);
  const [chosen, setChosen] = useState("");
  const model = chosen || value?.data[0]?.name;
  return html`<div class="stack">
    <${Problem} error=${error} />
    ${value && html`<${Field} id="look-model" label="Base model">
      <select id="look-model" value=${model} onChange=${({ target }) => setChosen(target.value)}>${value.data.map(({ name }) => html`<option key=${name} value=${name}>${name}</option>`)}</select>
    <//>`}
    ${model ? html`<${Preview} dataset=${dataset.id} baseModel=${model} />` : value && html`<p class="muted">There is no base model here yet to read them with.</p>`}
  </div>`;
}
