// One column of the playground: which model, what it says, how fast, and the same request to copy.

import { Calls, Thoughts, Waiting } from "./answering.js";
import { count, number } from "./format.js";
import { asCurl, asPython } from "./snippets.js";
import { Copy, Field, html, Problem } from "./ui.js";

export function Answer({ number: place, target, models, adapters, aliases, answer, body, onTarget, onRemove }) {
  const id = `target-${place}`;
  return html`<section class="card answer" aria-label=${`Column ${place}`}>
    <div class="row apart">
      <${Field} id=${id} label=${`Model ${place}`}>
        <select id=${id} value=${target} onChange=${({ target: { value } }) => onTarget(value)}>
          <option value="">Choose one</option>
          <optgroup label="Base models">${models.map(({ name }) => html`<option key=${name} value=${`base:${name}`}>${name}</option>`)}</optgroup>
          ${aliases.length > 0 && html`<optgroup label="Aliases">${aliases.map(({ name }) => html`<option key=${name} value=${`alias:${name}`}>${name}</option>`)}</optgroup>`}
          <optgroup label="Adapters">${adapters.map(({ id: adapter, name }) => html`<option key=${adapter} value=${`adapter:${adapter}`}>${name}</option>`)}</optgroup>
        </select>
      <//>
      ${onRemove && html`<button type="button" class="plain small" aria-label=${`Remove column ${place}`} onClick=${onRemove}>Remove</button>`}
    </div>
    <${Thoughts} text=${answer.reasoning} isBusy=${answer.isBusy && !answer.text} />
    <output aria-label=${`Answer ${place}`} aria-busy=${answer.isBusy} tabindex="0">${answer.text || html`<${Nothing} answer=${answer} baseModel=${baseOf(target, adapters)} />`}</output>
    <${Calls} calls=${answer.calls} />
    <${Problem} error=${answer.error} />
    <p class="small muted numbers">${summary(answer)}</p>
    ${target && html`<div class="row"><${Copy} text=${() => asCurl("/generate", body())}>Copy as curl<//><${Copy} text=${() => asPython(body())}>Copy as Python<//></div>`}
  </section>`;
}

function Nothing({ answer, baseModel }) {
  if (answer.isBusy) return html`<${Waiting} baseModel=${baseModel} since=${answer.askedAt} />`;
  return html`<span class="muted">${answer.end ? "An empty answer." : "Its answer comes here."}</span>`;
}

function baseOf(target, adapters) {
  const name = target.slice(target.indexOf(":") + 1);
  return target.startsWith("base:") ? name : adapters.find(({ id }) => id === name)?.base_model;
}

function summary({ end, isBusy, isStopped }) {
  if (isBusy) return "Answering…";
  if (isStopped) return "Stopped.";
  if (!end) return "";
  const { usage, timings, finish_reason: reason } = end;
  const why = reason === "length" ? "stopped at max new tokens" : "ended by itself";
  return `${count(usage.completion_tokens)} tokens, ${number(timings.tokens_per_second, 3)} a second, first after ${Math.round((timings.queued_seconds + timings.first_token_seconds) * 1000)} ms, ${why}`;
}
