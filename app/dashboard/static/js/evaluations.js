// Evaluations: a list, with what the models scored.

import { useState } from "../vendor/htm-preact.js";
import { getAll, post, remove } from "./api.js";
import { ago, moment, number, percent, plural } from "./format.js";
import { placeInLine } from "./priority.js";
import { Action, Card, Confirm, Empty, html, Loading, Page, Problem, State, tell, useLoaded } from "./ui.js";

export const isOver = ({ state }) => !["queued", "running"].includes(state);

export default function Evaluations() {
  const { value, error, reload } = useLoaded(() => getAll("/evaluations", 200), [], 3_000);
  const [doomed, setDoomed] = useState(null);
  return html`<${Page} title="Evaluations" actions=${html`<a class="button primary" href="#/new-evaluation">New evaluation</a>`}>
    <div class="stack">
      <${Problem} error=${error} />
      ${!value && !error && html`<${Loading} />`}
      ${value?.length === 0 && html`<${Empty} title="No evaluation yet"><p>It asks several models the same rows, grades their answers, and shows which is better.</p><div class="row"><a class="button primary" href="#/new-evaluation">New evaluation</a></div><//>`}
      ${value?.length > 0 && html`<${Card}><table class="cards-if-narrow">
        <caption class="visually-hidden">Evaluations</caption>
        <thead><tr><th scope="col">Name</th><th scope="col">State</th><th scope="col">Models</th><th scope="col">First grader</th><th scope="col">Rows</th><th scope="col">Asked for</th><th scope="col"><span class="visually-hidden">What to do</span></th></tr></thead>
        <tbody>${value.map((one) => html`<${Row} key=${one.id} evaluation=${one} onChange=${reload} onDelete=${() => setDoomed(one)} />`)}</tbody>
      </table><//>`}
    </div>
    ${doomed && html`<${DeleteEvaluation} evaluation=${doomed} onClose=${() => setDoomed(null)} onDeleted=${reload} />`}
  <//>`;
}

function Row({ evaluation, onChange, onDelete }) {
  const { id, name, state, phase, spec, rows, results, total, done } = evaluation;
  return html`<tr>
    <td><a class="name wrap" href=${`#/evaluation/${id}`}>${name}</a>${name !== id && html`<div class="small muted mono">${id}</div>`}</td>
    <td data-label="State"><${State} state=${state} phase=${phase} />${state === "running" && total && html`<div class="small muted numbers">${percent(done / total)}</div>`}${evaluation.queue_position && html`<div class="small muted">${placeInLine(evaluation)}</div>`}</td>
    <td data-label="Models" class="wrap">${spec.models.map(({ label }) => html`<div key=${label}>${label}</div>`)}</td>
    <td data-label="First grader" class="numbers">${results?.models.map(({ model, graders }) => html`<div key=${model}>${score(graders[0])}</div>`)}</td>
    <td data-label="Rows" class="numbers">${rows ?? ""}</td>
    <td data-label="Asked for" title=${moment(evaluation.created_at)}>${ago(evaluation.created_at)}</td>
    <td><div class="row">${isOver(evaluation)
      ? html`<button type="button" class="small danger" aria-label=${`Delete ${name}`} onClick=${onDelete}>Delete</button>`
      : html`<${Action} class="small danger" aria-label=${`Cancel ${name}`} onClick=${async () => {
        await post(`/evaluations/${id}/cancel`);
        await onChange();
      }}>Cancel<//>`}</div></td>
  </tr>`;
}

/** A pass rate where there is one, else a mean. */
export const score = (result) => (!result ? "" : result.pass_rate ? percent(result.pass_rate.value) : result.mean ? number(result.mean.value, 3) : "–");

export const DeleteEvaluation = ({ evaluation, onClose, onDeleted }) => html`
  <${Confirm} title=${`Delete the evaluation ${evaluation.name}?`} label="Delete it for good" onClose=${onClose}
    onConfirm=${async () => {
      await remove(`/evaluations/${evaluation.id}`);
      tell(`${evaluation.name} is deleted.`, "good");
      await onDeleted();
    }}>
    <p>${`Its ${evaluation.rows ? plural(evaluation.rows, "row") : "rows"}, answers and results go, and can't be brought back.`}</p>
  <//>`;
