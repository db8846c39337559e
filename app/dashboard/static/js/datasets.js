// Datasets: add, list, download, delete.

import { useState } from "../vendor/htm-preact.js";
import { download, getAll, post } from "./api.js";
import { DeleteDataset } from "./dataset.js";
import { AddDataset } from "./dataset_add.js";
import { ago, bytes, count, moment, plural } from "./format.js";
import { Action, Card, Empty, html, Loading, Page, Problem, State, useLoaded } from "./ui.js";

export default function Datasets() {
  const { value, error, reload } = useLoaded(() => getAll("/datasets"), [], 3_000);
  const [doomed, setDoomed] = useState(null);
  const fetchAgain = async ({ name, hub }) => {
    const { commit, ...source } = hub;
    await post("/datasets", { ...source, name, on_unused: "ignore" });
    await reload();
  };
  return html`<${Page} title="Datasets">
    <div class="stack">
      <${Card} title="Add a dataset"><${AddDataset} onAdded=${reload} /><//>
      <${Problem} error=${error} />
      ${!value && !error && html`<${Loading} />`}
      ${value?.length === 0 && html`<${Empty} title="No dataset yet"><p>A file of rows, or one of the Hub: a job learns from it.</p><//>`}
      ${value?.length > 0 && html`<${Card}><table class="cards-if-narrow">
        <caption class="visually-hidden">Datasets</caption>
        <thead><tr><th scope="col">Name</th><th scope="col">Rows</th><th scope="col">Size</th><th scope="col">Came from</th><th scope="col">Added</th><th scope="col"><span class="visually-hidden">What to do</span></th></tr></thead>
        <tbody>${value.map((dataset) => html`<${Row} key=${dataset.id} dataset=${dataset} onFetchAgain=${() => fetchAgain(dataset)} onDelete=${() => setDoomed(dataset)} />`)}</tbody>
      </table><//>`}
    </div>
    ${doomed && html`<${DeleteDataset} dataset=${doomed} onClose=${() => setDoomed(null)} onDeleted=${reload} />`}
  <//>`;
}

function Row({ dataset, onFetchAgain, onDelete }) {
  const { id, name, state, hub, error } = dataset;
  const isReady = state === "ready";
  return html`<tr>
    <td><a class="name wrap" href=${`#/dataset/${id}`}>${name}</a><div class="small muted mono">${id}</div>
      ${!isReady && html`<${State} state=${state} />`}
      ${error && html`<div class="note bad small"><strong>${error.message}</strong> ${error.hint}</div>`}
      ${hub && error?.hint?.includes("on_unused=ignore") && html`<div><${Action} class="small" onClick=${onFetchAgain}>Fetch it without these fields<//></div>`}
      ${dataset.problem_count > 0 && html`<details class="small"><summary>${`${plural(dataset.problem_count, "row")} left out`}</summary><ul class="bullets">${dataset.problems.map(({ line, message }) => html`<li key=${line}>Line ${line}: ${message}</li>`)}</ul></details>`}
      <${UnusedFields} fields=${dataset.unused_fields} />
    </td>
    <td data-label="Rows"><span class="numbers">${count(dataset.rows)}</span><div class="small muted">${dataset.format?.replaceAll("_", " ")}</div></td>
    <td data-label="Size" class="numbers">${isReady ? bytes(dataset.size_bytes) : ""}</td>
    <td data-label="Came from" class="wrap">${hub ? html`Hub: ${hub.hub_dataset}<div class="small muted">${[hub.config, hub.split, hub.commit?.slice(0, 10)].filter(Boolean).join(", ")}</div>` : "an upload"}</td>
    <td data-label="Added" title=${moment(dataset.created_at)}>${ago(dataset.created_at)}</td>
    <td><div class="row">
      ${isReady && html`<a class="button small" href=${`#/new?dataset=${id}`}>Train</a>
        <a class="button small" href=${`#/dataset/${id}`} aria-label=${`Rows of ${name}`}>Rows</a>
        <${Action} class="small" onClick=${() => download(`/datasets/${id}/download`, `${id}.jsonl`)}>Download<//>`}
      <button type="button" class="small danger" aria-label=${`Delete ${name}`} onClick=${onDelete}>Delete</button>
    </div></td>
  </tr>`;
}

/** The fields of a dataset from which nothing is learned. */
function UnusedFields({ fields }) {
  if (!fields.length) return null;
  return html`<details class="small">
    <summary>${`${plural(fields.length, "field")} not used`}${fields.some((field) => field.changes_learning) && html` <strong>(changes what is learned)</strong>`}</summary>
    <ul class="bullets">${fields.map(({ field, rows, changes_learning }) => html`<li key=${field}><span class="mono wrap">${field}</span>: ${plural(rows, "row")}${changes_learning ? ", changes what is learned" : ""}</li>`)}</ul>
  </details>`;
}
