// Sample answers of a job: what the dataset says, what the model said before training, and at one step.

import { useState } from "../vendor/htm-preact.js";
import { number, plural } from "./format.js";
import { Card, html } from "./ui.js";

/** `samples`: the events' data by step. The latest step is shown until a person chooses another. */
export function JobSamples({ samples, isOver }) {
  const [chosen, setChosen] = useState(null);
  if (samples.size === 0) return null;
  const steps = [...samples.keys()].sort((one, other) => one - other);
  const final = steps.find((step) => samples.get(step).is_final);
  const later = steps.filter((step) => step > 0);
  const shown = samples.get(later.includes(chosen) ? chosen : (final ?? later.at(-1)));
  const before = samples.get(0);
  const choice = later.length > 0 && html`<label class="row small"><span>Answers at</span>
    <select value=${shown.step} onChange=${({ target }) => setChosen(Number(target.value))}>
      ${later.map((step) => html`<option key=${step} value=${step}>${describe(samples.get(step))}</option>`)}
    </select></label>`;
  return html`<${Card} title=${final == null ? "Sample answers" : "Answers before and after training"} actions=${choice}>
    <div class="stack tight">
      <${Answers} before=${before} after=${shown} />
      <p class="small muted">${explain(shown ?? before, isOver)}</p>
    </div>
  <//>`;
}

const describe = ({ step, epoch, is_final: isFinal }) => (isFinal ? `step ${step}, the adapter` : `step ${step}, epoch ${number(epoch, 3)}`);

function explain({ answers, seconds }, isOver) {
  const took = `${plural(answers.length, "answer")} in ${number(Math.max(seconds, 0.1), 2)} s, each time the likeliest token.`;
  return isOver ? took : `${took} The next ones come with an evaluation.`;
}

/** A table; on a narrow screen a list, each cell with its column's name. */
function Answers({ before, after }) {
  const known = after ?? before;
  const hasExpected = known.answers.some(({ expected }) => expected != null);
  const columns = [hasExpected && "Expected", before && "Before training", after && (after.is_final ? "After training" : `At step ${after.step}`)].filter(Boolean);
  return html`<table class="samples cards-if-narrow" role="table" aria-label="Sample answers">
    <thead role="rowgroup"><tr role="row">${["Prompt", ...columns].map((name) => html`<th key=${name} scope="col" role="columnheader">${name}</th>`)}</tr></thead>
    <tbody role="rowgroup">${known.answers.map(({ prompt, expected }, place) => html`<tr key=${place} role="row">
      <td role="rowheader" class="prompt wrap">${prompt}</td>
      ${hasExpected && html`<td role="cell" class="wrap" data-label="Expected">${expected ?? "–"}</td>`}
      ${before && html`<${Answer} answer=${before.answers[place]} column="Before training" />`}
      ${after && html`<${Answer} answer=${after.answers[place]} column=${columns.at(-1)} />`}
    </tr>`)}</tbody>
  </table>`;
}

function Answer({ answer, column }) {
  if (!answer) return html`<td role="cell" data-label=${column}>–</td>`;
  const isExpected = answer.expected != null && answer.answer.trim() === answer.expected.trim();
  return html`<td role="cell" class="wrap" data-label=${column}>${answer.answer || html`<span class="muted">nothing</span>`}${answer.is_cut && html`<span class="muted" title="The limit of new tokens was reached"> …</span>`}
    ${isExpected && html`<span class="small as-expected"> as expected</span>`}</td>`;
}
