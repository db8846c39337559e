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

const countLearned = (tokens) => tokens.filter(({ trained }) => trained).length;

function Row({ row }) {
  const answers = row.answers ?? [];
  const counts = answers.length ? `prompt of ${row.token_count} tokens` : `${row.tokens.length} tokens, ${countLearned(row.tokens)} learned`;
  return html`<div class="stack tight">
  <h3>Line ${row.line} <span class="muted small">${counts}${row.truncated ? ", cut" : ""}</span></h3>
  ${row.problem && html`<div class="note bad">${row.problem}</div>`}
  ${(row.notices ?? []).map((notice) => html`<div key=${notice} class="note warn">${notice}</div>`)}
  <${Tokens} tokens=${row.tokens} label=${`Tokens of line ${row.line}`} />
  ${answers.length > 0 && html`<div class="answers">${answers.map(({ name, is_good: isGood, tokens, token_count: count }) => html`<section key=${name} class=${`pair ${isGood ? "good" : "bad"}`}>
    <h4>${name === "completion" ? (isGood ? "Good answer" : "Bad answer") : name === "chosen" ? "Chosen answer" : "Rejected answer"} <span class="muted small">${count} tokens, ${countLearned(tokens)} learned</span></h4>
    <${Tokens} tokens=${tokens} label=${`Tokens of the ${name} answer of line ${row.line}`} />
  </section>`)}</div>`}
</div>`;
}

const Tokens = ({ tokens, label }) => html`<div class="tokens" tabindex="0" role="group" aria-label=${label}>${toRuns(tokens).map(({ trained, tokens: run }) => {
  const parts = run.map(({ text, id }) => html`<span title=${`token ${id}`}>${text}</span>`);
  return trained ? html`<mark>${parts}</mark>` : html`<span class="plain">${parts}</span>`;
})}</div>`;
