// The evaluation with which a job ends: base model and adapter next to each other on rows that were held out.

import { useState } from "../vendor/htm-preact.js";
import { count, number, plural } from "./format.js";
import { Card, Facts, html } from "./ui.js";

const SHOWN = 5;

/** `found`: as `GET /jobs/{id}` has it; null: there is none. */
export function FinalEvaluation({ found }) {
  const [isWhole, setWhole] = useState(false);
  if (!found) return null;
  const rows = isWhole ? found.rows : found.rows.slice(0, SHOWN);
  const better = found.rows.filter((row) => row.adapter_loss < row.base_loss).length;
  const more = found.rows.length > SHOWN && html`<button type="button" class="small" onClick=${() => setWhole(!isWhole)}>${isWhole ? `Show ${SHOWN}` : `Show all ${found.rows.length}`}</button>`;
  return html`<${Card} title="Base model and adapter on rows held out" actions=${more}>
    <div class="stack tight">
      <${Facts} facts=${[
        ["Loss of the base model", number(found.base_loss)],
        ["Loss with the adapter", number(found.adapter_loss)],
        ["Lower with the adapter", `${better} of ${plural(found.rows.length, "row")}`],
      ]} />
      <table class="samples cards-if-narrow" role="table" aria-label="Base model and adapter on rows held out">
        <thead role="rowgroup"><tr role="row">${["Prompt", "Expected", "Base model", "Adapter"].map((name) => html`<th key=${name} scope="col" role="columnheader">${name}</th>`)}</tr></thead>
        <tbody role="rowgroup">${rows.map((row) => html`<tr key=${row.line} role="row">
          <td role="rowheader" class="prompt wrap">${row.prompt}</td>
          <td role="cell" class="wrap" data-label="Expected">${row.expected}</td>
          <${Side} column="Base model" answer=${row.base_answer} isCut=${row.base_is_cut} loss=${row.base_loss} expected=${row.expected} />
          <${Side} column="Adapter" answer=${row.adapter_answer} isCut=${row.adapter_is_cut} loss=${row.adapter_loss} expected=${row.expected} />
        </tr>`)}</tbody>
      </table>
      <p class="small muted">${`${count(found.rows.length)} of ${plural(found.held_out, "row")} that the job did not learn from. Loss: of the expected answer. Answers: each time the likeliest token.`}</p>
    </div>
  <//>`;
}

function Side({ column, answer, isCut, loss, expected }) {
  const isExpected = answer != null && answer.trim() === expected.trim();
  return html`<td role="cell" class="wrap" data-label=${column}>${answer == null ? html`<span class="muted">not answered: time was up</span>` : answer || html`<span class="muted">nothing</span>`}${isCut && html`<span class="muted" title="A limit of tokens or of time was reached"> …</span>`}
    ${isExpected && html`<span class="small as-expected"> as expected</span>`}
    <div class="small muted numbers">loss ${number(loss)}</div></td>`;
}
