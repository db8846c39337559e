// A job's events as lines of a log that follows its end, unless a person has scrolled up.

import { useLayoutEffect, useRef, useState } from "../vendor/htm-preact.js";
import { download } from "./api.js";
import { bytes, count, number } from "./format.js";
import { Action, Card, html } from "./ui.js";
import { inWords } from "./words.js";

const SHOWN = 500;

export function JobLog({ events, total, jobId }) {
  const [isFull, setFull] = useState(true);
  const place = useRef(null);
  const isAtEnd = useRef(true);
  const kept = isFull ? events : events.filter(({ type }) => type !== "metrics");
  const lines = kept.slice(-SHOWN);
  useLayoutEffect(() => {
    if (isAtEnd.current) place.current.scrollTop = place.current.scrollHeight;
  });
  const scrolled = ({ target }) => {
    isAtEnd.current = target.scrollHeight - target.scrollTop - target.clientHeight < 30;
  };
  const actions = html`
    <label class="check small"><input type="checkbox" checked=${isFull} onChange=${() => setFull(!isFull)} /> Steps too</label>
    <${Action} class="small" onClick=${() => download(`/jobs/${jobId}/logs`, `${jobId}.log`)}>Download<//>`;
  return html`<${Card} title="Log" actions=${actions}>
    <div class="log" ref=${place} onScroll=${scrolled} tabindex="0" role="log" aria-label="The job's log" aria-live="off">
      ${total > lines.length && isFull && html`<div class="muted">${`The last ${count(lines.length)} of ${count(total)} lines; the download has all.`}</div>`}
      ${lines.length === 0 && html`<div class="muted">Nothing yet.</div>`}
      ${lines.map((event) => html`<div key=${event.seq} data-seq=${event.seq} class=${event.level === "info" ? (event.type === "state" ? "state-line" : "") : event.level}><time datetime=${event.at}>${new Date(event.at).toLocaleTimeString()}</time> ${say(event)}</div>`)}
    </div>
  <//>`;
}

function say({ type, data }) {
  switch (type) {
    case "log":
      return data.message;
    case "warning":
      return inWords(data.message);
    case "checkpoint":
      return `Checkpoint at step ${data.step}.`;
    case "eval":
      return `Step ${data.step}: evaluation loss ${number(data.loss)}`;
    case "samples":
      return `Step ${data.step}: ${data.answers.length} sample answers${data.is_final ? " of the adapter" : ""}`;
    case "final_eval":
      return `${data.rows.length} rows held out: loss of the base model ${number(data.base_loss)}, with the adapter ${number(data.adapter_loss)}`;
    case "state":
      return [data.phase ?? data.state, data.reason, data.adapter && `adapter ${data.adapter}`].filter(Boolean).join(": ");
    case "metrics":
      return [
        `Step ${data.step}/${data.total_steps}: loss ${number(data.loss)}`,
        data.grad_norm != null && `gradient ${number(data.grad_norm, 3)}`,
        data.tokens_per_second != null && `${count(data.tokens_per_second)} tokens/s`,
        data.memory_bytes != null && bytes(data.memory_bytes),
      ].filter(Boolean).join(", ");
    default:
      return JSON.stringify(data);
  }
}
