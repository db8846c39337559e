// One evaluation: its progress, its results, and the rows with all answers side by side.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { Calls, Thoughts } from "./answering.js";
import { download, get, post } from "./api.js";
import { DeleteEvaluation, isOver } from "./evaluations.js";
import { ago, moment, number, percent, plural } from "./format.js";
import { placeInLine, WaitingPriority } from "./priority.js";
import { Action, Card, Facts, Field, html, Loading, Page, Problem, State, useLoaded } from "./ui.js";
import { inWords } from "./words.js";

const SOON = 300;
const ROWS = 20;
const OUTCOMES = [["", "Any"], ["passed", "Passed"], ["failed", "Failed"], ["won", "Better than the baseline"], ["tied", "As good as the baseline"], ["lost", "Worse than the baseline"], ["error", "Error"]];

export default function Evaluation({ id }) {
  const [isEnded, setEnded] = useState(false);
  const { value, error, reload } = useLoaded(() => read(id), [id, isEnded], isEnded ? 0 : 2_000);
  const [isDoomed, setDoomed] = useState(false);
  useEffect(() => value && setEnded(isOver(value.evaluation)), [value]);
  if (!value) return html`<${Page} title="Evaluation" crumb=${html`<a href="#/evaluations">Evaluations</a>`}>${error ? html`<${Problem} error=${error} />` : html`<${Loading} />`}<//>`;
  const { evaluation, results } = value;
  const change = (verb) => async () => {
    await post(`/evaluations/${id}/${verb}`);
    setEnded(false);
    await reload();
  };
  const actions = html`
    ${results && html`<${Action} onClick=${() => download(`/evaluations/${id}/results.csv`, `${id}.csv`)}>Download CSV<//>`}
    ${!isOver(evaluation) && html`<${Action} class="danger" onClick=${change("cancel")}>Cancel<//>`}
    ${isOver(evaluation) && (evaluation.state !== "succeeded" || hasErrors(results)) && html`<${Action} onClick=${change("retry")}>Retry<//>`}
    ${isOver(evaluation) && html`<button type="button" class="danger" onClick=${() => setDoomed(true)}>Delete</button>`}`;
  return html`<${Page} title=${evaluation.name} crumb=${html`<a href="#/evaluations">Evaluations</a>`} actions=${actions}>
    <div class="stack">
      <${Problem} error=${error} />
      <${Overview} evaluation=${evaluation} onChange=${reload} />
      ${results?.rows > 0 && html`<${Results} results=${results} />`}
      ${evaluation.rows != null && html`<${Rows} evaluation=${evaluation} done=${evaluation.done} />`}
    </div>
    ${isDoomed && html`<${DeleteEvaluation} evaluation=${evaluation} onClose=${() => setDoomed(false)} onDeleted=${() => (location.hash = "#/evaluations")} />`}
  <//>`;
}

const hasErrors = (results) => results.models.some(({ errors, graders }) => errors || graders.some((result) => result.errors));

async function read(id) {
  const evaluation = await get(`/evaluations/${encodeURIComponent(id)}`);
  return { evaluation, results: evaluation.results ?? (evaluation.done ? await get(`/evaluations/${encodeURIComponent(id)}/results`) : null) };
}

function Overview({ evaluation, onChange }) {
  const { state, phase, spec, rows, total, done, failed, error, waiting_for: waiting } = evaluation;
  const source = spec.held_out_of ? html`held out of <a href=${`#/job/${spec.held_out_of}`}>its job</a>` : evaluation.dataset ? html`of <a href=${`#/dataset/${evaluation.dataset}`}>a dataset</a>` : "that came with the request";
  return html`<${Card}><div class="stack tight">
    <div class="row apart"><${State} state=${state} phase=${phase} />${evaluation.queue_position && html`<span class="small muted">${placeInLine(evaluation)}</span>`}</div>
    ${state === "queued" && html`<${WaitingPriority} path=${`/evaluations/${evaluation.id}`} work=${evaluation} onChange=${onChange} />`}
    ${error && html`<${Problem} error=${error} />`}
    ${waiting && html`<div class="note" role="status">${inWords(`It waits: ${waiting}`)}</div>`}
    ${state === "running" && html`<progress aria-label="Graded answers" max=${total ?? 1} value=${total ? done : 0}></progress>`}
    <${Facts} facts=${[
      ["Rows", rows == null ? "not chosen yet" : html`${rows} ${source}`],
      ["Answers", total == null ? null : `${done} of ${total}${failed ? `, ${plural(failed, "error")}` : ""}`],
      evaluation.left_out > 0 && ["Rows left out", `${evaluation.left_out}, without a prompt or an answer`],
      ["Sampling", spec.sampling.temperature === 0 ? "greedy" : `temperature ${spec.sampling.temperature}`],
      ["Asked for", html`<span title=${moment(evaluation.created_at)}>${ago(evaluation.created_at)}</span>`],
    ]} />
  </div><//>`;
}

const range = (estimate, write) => (estimate ? html`${write(estimate.value)} <span class="small muted">${`${write(estimate.low)} to ${write(estimate.high)}`}</span>` : "–");

function Results({ results }) {
  const lines = results.models.flatMap((model) => (model.graders.length ? model.graders : [null]).map((result) => ({ model, result })));
  return html`<${Card} title="Results"><div class="stack tight">
    <table class="cards-if-narrow" role="table" aria-label="Results">
      <thead role="rowgroup"><tr role="row">${["Model", "Grader", "Mean", "Passed", "Against the baseline", "Errors"].map((name) => html`<th key=${name} scope="col" role="columnheader">${name}</th>`)}</tr></thead>
      <tbody role="rowgroup">${lines.map(({ model, result }) => html`<tr key=${`${model.model} ${result?.grader}`} role="row">
        <td role="rowheader" class="wrap"><strong>${model.model}</strong>${model.model === results.baseline && html` <span class="small muted">baseline</span>`}</td>
        <td role="cell" data-label="Grader" class="wrap">${result?.grader ?? "–"}</td>
        <td role="cell" data-label="Mean" class="numbers">${range(result?.mean, (value) => number(value, 3))}</td>
        <td role="cell" data-label="Passed" class="numbers">${range(result?.pass_rate, percent)}</td>
        <td role="cell" data-label="Against the baseline" class="numbers">${against(result)}</td>
        <td role="cell" data-label="Errors" class="numbers">${(result ? result.errors : model.errors) || ""}</td>
      </tr>`)}</tbody>
    </table>
    <p class="small muted">${`${plural(results.rows, "row")}; the models differ on ${results.disagreements}. Intervals are of 95%: Wilson's of what passed, the bootstrap's of means.`}</p>
  </div><//>`;
}

function against(result) {
  const found = result?.against_baseline;
  return found ? html`${plural(found.wins, "win")}, ${plural(found.ties, "tie")}, ${plural(found.losses, "loss", "losses")}` : "–";
}

/** Rows side by side, as many as were asked for, with filters. */
function Rows({ evaluation, done }) {
  const [wanted, setWanted] = useState({ disagree: false, outcome: "", model: "", grader: "", search: "" });
  const [most, setMost] = useState(ROWS);
  const query = Object.entries(wanted).filter(([, value]) => value).map(([name, value]) => `&${name}=${encodeURIComponent(value)}`).join("");
  const { value, error, isLoading } = useLoaded((signal) => get(`/evaluations/${evaluation.id}/rows?limit=${most}${query}`, { signal }), [query, most, done], 0, SOON);
  const change = (part) => (setMost(ROWS), setWanted({ ...wanted, ...part }));
  const { models } = evaluation.spec;
  const labels = [["", "Any"], ...models.map(({ label }) => [label, label])];
  const graders = [["", "Any"], ...evaluation.grader_names.map((name) => [name, name])];
  return html`<${Card} title="Rows"><div class="stack">
    <div class="grid four">
      <${Choice} id="outcome" label="Answers that" options=${OUTCOMES} value=${wanted.outcome} onChange=${(outcome) => change({ outcome })} />
      <${Choice} id="of-model" label="Of the model" options=${labels} value=${wanted.model} onChange=${(model) => change({ model })} isOff=${!wanted.outcome} />
      <${Choice} id="by-grader" label="By the grader" options=${graders} value=${wanted.grader} onChange=${(grader) => change({ grader })} isOff=${!wanted.outcome} />
      <${Field} id="row-search" label="Containing"><input id="row-search" type="search" value=${wanted.search} onInput=${({ target }) => change({ search: target.value.trim() })} /><//>
    </div>
    <label class="check"><input type="checkbox" checked=${wanted.disagree} onChange=${({ target }) => change({ disagree: target.checked })} /> Only where the models disagree</label>
    <${Problem} error=${error} />
    <div role="status">${isLoading && !value ? html`<${Loading} />` : value?.data.length === 0 && html`<p class="muted">No row is like that.</p>`}</div>
    ${value?.data.map((row) => html`<${SideBySide} key=${row.number} row=${row} />`)}
    ${value?.next != null && html`<div class="row"><button type="button" disabled=${isLoading || most >= 200} onClick=${() => setMost(Math.min(200, most + ROWS))}>More rows</button>${most >= 200 && html`<span class="small muted">The CSV file has all of them.</span>`}</div>`}
  </div><//>`;
}

const Choice = ({ id, label, options, value, onChange, isOff }) => html`<${Field} id=${id} label=${label}>
  <select id=${id} value=${value} disabled=${isOff} onChange=${({ target }) => onChange(target.value)}>${options.map(([key, name]) => html`<option key=${key} value=${key}>${name}</option>`)}</select>
<//>`;

const SideBySide = ({ row }) => html`<section class="stack tight" aria-label=${`Row ${row.number + 1}`}>
  <div class="turn user"><div class="small muted"><strong>${`Row ${row.number + 1}`}</strong>${row.line != null && `, line ${row.line}`}</div><div class="wrap">${row.prompt}</div></div>
  ${row.reference && html`<div class="turn"><div class="small muted"><strong>Reference</strong></div><div class="wrap">${row.reference}</div></div>`}
  <div class="answers">${row.answers.map((answer) => html`<${Answer} key=${answer.model} answer=${answer} />`)}</div>
</section>`;

/** The scores come first: a long answer is scrolled. */
const Answer = ({ answer }) => html`<section class="turn assistant" aria-label=${`Answer of ${answer.model}`}>
  <div class="small muted"><strong class="wrap">${answer.model}</strong>${answer.finish_reason === "length" && " (cut)"}</div>
  <ul class="bullets small">${Object.entries(answer.grades ?? {}).map(([name, grade]) => html`<li key=${name}><strong>${name}</strong>: ${grade.score == null ? (grade.error?.message ?? "no score") : number(grade.score, 3)}${grade.passed != null && grade.score != null && html` <span class=${`state ${grade.passed ? "succeeded" : "failed"}`}>${grade.passed ? "passed" : "failed"}</span>`}${grade.reason && html` <span class="muted wrap">${grade.reason}</span>`}</li>`)}</ul>
  <${Thoughts} text=${answer.reasoning} />
  ${answer.error ? html`<div class="note bad small">${answer.error.message}</div>` : html`<div class="wrap">${answer.text || (answer.tool_calls.length || !answer.finish_reason ? "" : html`<span class="muted">nothing</span>`)}</div>`}
  <${Calls} calls=${answer.tool_calls.map((call, index) => ({ call: index, name: call.name, arguments: call.arguments }))} />
</section>`;
