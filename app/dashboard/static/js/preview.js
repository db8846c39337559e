// Rows of a dataset as a base model will see them: the tokens that the loss counts are marked.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { get } from "./api.js";
import { html, Loading, Problem, useLoaded } from "./ui.js";

const ROWS = 3;

export function Preview({ dataset, baseModel, assistantOnly = false, maxLength = null }) {
  const [after, setAfter] = useState(0);
  const wanted = [dataset, baseModel, assistantOnly, maxLength].join("|");
  useEffect(() => setAfter(0), [wanted]);
  const load = (signal) => {
    const query = new URLSearchParams({ base_model: baseModel, limit: ROWS, after, assistant_only_loss: assistantOnly });
    if (maxLength) query.set("max_seq_length", maxLength);
    return get(`/datasets/${encodeURIComponent(dataset)}/preview?${query}`, { signal });
  };
  const { value, error, isLoading } = useLoaded(load, [wanted, after], 0, 250);
  if (isLoading) return html`<${Loading} />`;
  if (error) return html`<${Problem} error=${error} />`;
  const { data, next, warnings } = value;
  return html`<div class="stack">
    <p class="small muted">Learned from: <mark>marked and underlined</mark>. The rest is read, not learned.</p>
    ${warnings.map(({ code, message }) => html`<div key=${message} class="note warn">${message}</div>`)}
    ${data.map((row) => html`<${Row} key=${row.line} row=${row} />`)}
    <div class="row">
      ${after > 0 && html`<button type="button" class="small" onClick=${() => setAfter(0)}>First rows</button>`}
      ${next != null && html`<button type="button" class="small" onClick=${() => setAfter(next)}>Next rows</button>`}
    </div>
  </div>`;
}

/** Tokens that follow each other and are all learned, or all not. */
function toRuns(tokens) {
  const runs = [];
  for (const token of tokens) {
    if (runs.at(-1)?.trained !== token.trained) runs.push({ trained: token.trained, tokens: [] });
    runs.at(-1).tokens.push(token);
  }
  return runs;
}

const Row = ({ row }) => html`<div class="stack tight">
  <h3>Line ${row.line} <span class="muted small">${row.tokens.length} tokens, ${row.tokens.filter(({ trained }) => trained).length} learned${row.truncated ? ", cut" : ""}</span></h3>
  ${row.problem && html`<div class="note bad">${row.problem}</div>`}
  ${(row.notices ?? []).map((notice) => html`<div key=${notice} class="note warn">${notice}</div>`)}
  <div class="tokens" tabindex="0" role="group" aria-label=${`Tokens of line ${row.line}`}>${toRuns(row.tokens).map(({ trained, tokens }) => {
    const parts = tokens.map(({ text, id }) => html`<span title=${`token ${id}`}>${text}</span>`);
    return trained ? html`<mark>${parts}</mark>` : html`<span class="plain">${parts}</span>`;
  })}</div>
</div>`;
