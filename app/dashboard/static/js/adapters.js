// Finished adapters: where they came from, and what may be done with them.

import { useState } from "../vendor/htm-preact.js";
import { ImportAdapter } from "./adapter_import.js";
import { Aliases } from "./aliases.js";
import { download, getAll, remove } from "./api.js";
import { ago, bytes, moment } from "./format.js";
import { Action, Card, Confirm, Empty, html, Loading, Page, Problem, State, tell, useLoaded } from "./ui.js";
import { inWords } from "./words.js";

export default function Adapters() {
  const { value, error, reload } = useLoaded(readAll, [], 3_000);
  const [doomed, setDoomed] = useState(null);
  const [isImporting, setImporting] = useState(false);
  const button = html`<button type="button" aria-expanded=${isImporting} onClick=${() => setImporting(!isImporting)}>Import an adapter</button>`;
  return html`<${Page} title="Adapters" actions=${button}>
    <div class="stack">
      ${isImporting && html`<${Card} title="Import an adapter"><${ImportAdapter} onAdded=${reload} /><//>`}
      ${value?.imports.length > 0 && html`<${Card} title="Imports"><ul class="list">${value.imports.map((adapter) => html`<${Import} key=${adapter.id} adapter=${adapter} onDelete=${() => setDoomed(adapter)} />`)}</ul><//>`}
      <${Problem} error=${error} />
      ${!value && !error && html`<${Loading} />`}
      ${value?.adapters.length === 0 && html`<${Empty} title="No adapter yet"><p>A job makes one when it has finished.</p><div class="row"><a class="button primary" href="#/new">New job</a></div><//>`}
      ${value?.adapters.length > 0 && html`<${Card}><table class="cards-if-narrow">
        <caption class="visually-hidden">Finished adapters</caption>
        <thead><tr><th scope="col">Name</th><th scope="col">Base model</th><th scope="col">Made from</th><th scope="col">Size</th><th scope="col">Made</th><th scope="col"><span class="visually-hidden">What to do</span></th></tr></thead>
        <tbody>${value.adapters.map((adapter) => html`<${Row} key=${adapter.id} adapter=${adapter} datasets=${value.datasets} onDelete=${() => setDoomed(adapter)} />`)}</tbody>
      </table><//>`}
      ${value && html`<${Aliases} adapters=${value.adapters} />`}
    </div>
    ${doomed && html`<${Confirm} title=${`Delete the adapter ${doomed.name}?`} label="Delete it for good" onClose=${() => setDoomed(null)}
      onConfirm=${async () => {
        await remove(`/adapters/${doomed.id}`);
        tell(`${doomed.name} is deleted.`, "good");
        await reload();
      }}>
      <p>${`Its files (${bytes(doomed.size_bytes)}) go, and can't be brought back. Requests that name it are answered with 404 from then on. The job that made it stays, with its curves and its log.`}</p>
      <p class="small muted">Download it first if it may be wanted again.</p>
    <//>`}
  <//>`;
}

/** Adapters, imports that are no adapters yet, and the names of the datasets that their jobs read. */
async function readAll() {
  const [adapters, datasets, importing, failed] = await Promise.all([
    getAll("/adapters"),
    getAll("/datasets"),
    getAll("/adapters", 200, "&state=importing"),
    getAll("/adapters", 200, "&state=failed"),
  ]);
  return { adapters, imports: [...importing, ...failed], datasets: new Map(datasets.map(({ id, name }) => [id, name])) };
}

/** An import that does not answer yet, or never will. */
const Import = ({ adapter, onDelete }) => html`<li class="stack tight">
  <div class="row apart"><strong class="wrap">${adapter.name}</strong><${State} state=${adapter.state} /></div>
  ${adapter.error && html`<div class=${`note small ${adapter.state === "failed" ? "bad" : ""}`}>${inWords(`${adapter.error.message} ${adapter.error.hint ?? ""}`)}</div>`}
  <div><button type="button" class="small danger" aria-label=${`Delete ${adapter.name}`} onClick=${onDelete}>Delete</button></div>
</li>`;

function Row({ adapter, datasets, onDelete }) {
  const { id, name } = adapter;
  const dataset = adapter.dataset && (datasets.get(adapter.dataset) ?? `${adapter.dataset}, deleted since`);
  return html`<tr>
    <td><a class="wrap name" href=${`#/adapter/${id}`}>${name}</a><div class="small muted mono">${id}</div></td>
    <td data-label="Base model" class="wrap">${adapter.base_model}</td>
    <td data-label="Made from" class="wrap">${adapter.job ? html`<a href=${`#/job/${adapter.job}`}>${adapter.job_name}</a>` : "imported"}${dataset && html`<div class="small muted">${dataset}</div>`}</td>
    <td data-label="Size" class="numbers">${bytes(adapter.size_bytes)}</td>
    <td data-label="Made" title=${moment(adapter.created_at)}>${ago(adapter.created_at)}</td>
    <td><div class="row">
      <a class="button small" href=${`#/playground?adapter=${id}`}>Try</a>
      <a class="button small" href=${`#/new-evaluation?adapter=${id}`} aria-label=${`Evaluate ${name}`}>Evaluate</a>
      <a class="button small" href=${`#/adapter/${id}`}>Export</a>
      <a class="button small" href=${`#/new?continue_from=${id}&base_model=${encodeURIComponent(adapter.base_model)}`}>Train on</a>
      <${Action} class="small" onClick=${() => download(`/adapters/${id}/download`, `${name}.zip`)}>Download<//>
      <button type="button" class="small danger" aria-label=${`Delete ${name}`} onClick=${onDelete}>Delete</button>
    </div></td>
  </tr>`;
}
