// What a job would do, before it starts: memory against the device, time, steps, warnings.

import { post } from "./api.js";
import { bytes, count, duration, number, percent, plural } from "./format.js";
import { Facts, html, Loading, Problem, useLoaded } from "./ui.js";

const WAIT = 500;
const PARTS = [["weights", "base model"], ["lora", "adapter"], ["optimizer", "optimizer"], ["activations", "activations"], ["overhead", "overhead"]];

/** The preflight of a spec, requested again shortly after it has changed; null: the spec is incomplete. */
export function usePreflight(spec) {
  const text = spec ? JSON.stringify({ ...spec, name: undefined }) : null;
  const load = (signal) => text && post("/jobs/preflight", JSON.parse(text), { signal });
  const { value, error, isLoading } = useLoaded(load, [text], 0, WAIT);
  return text ? { answer: value, error, isLoading } : {};
}

export function Preflight({ answer, error, isLoading }) {
  if (error) return html`<${Problem} error=${error} />`;
  if (!answer) return isLoading ? html`<${Loading} />` : html`<p class="muted">Choose rows and a base model, and this shows what the job would do.</p>`;
  const { tokens, time, memory, device, disk, chosen, truncated, dropped } = answer;
  const seconds = time.seconds + (time.sample_seconds ?? 0) + (time.reference_seconds ?? 0);
  return html`<div class="stack" aria-busy=${isLoading}>
    <${MemoryBar} memory=${memory} device=${device} fits=${answer.fits} />
    <${Facts} facts=${[
      ["Time", `${seconds < 1 ? "" : "about "}${duration(seconds)}`],
      ["Steps", count(answer.optimizer_steps)],
      ["Rows", count(answer.training_rows)],
      answer.evaluation_rows > 0 && ["Evaluated on", count(answer.evaluation_rows)],
      ["Tokens an epoch", count(tokens.total)],
      ["Learned from", percent(answer.trained_token_share)],
      ["Longest row", plural(tokens.max, "token")],
      ["Disk", `${bytes(disk.checkpoints + disk.adapter)} of ${bytes(disk.free)} free`],
    ]} />
    <p class="small muted">${time.basis === "measured" ? "The time is that of the last such job here." : "The time is a guess until a job of this base model has finished here."}
      ${` Batches of ${chosen.per_device_train_batch_size}${chosen.gradient_accumulation_steps > 1 ? ` × ${chosen.gradient_accumulation_steps}` : ""}, ${chosen.compute_dtype}, rows cut at ${count(chosen.max_seq_length)} tokens, padding ${percent(answer.padding_share)}.`}</p>
    ${chosen.strategy && html`<p class="small muted">${`${chosen.strategy === "fsdp" ? "The GPUs divide the base model" : "Each GPU holds the whole base model"} (${chosen.strategy}): ${chosen.strategy_reason}`}</p>`}
    ${truncated.count > 0 && html`<div class="note warn">${`${plural(truncated.count, "row")} would be cut${lines(truncated.lines)}.`}</div>`}
    ${dropped.count > 0 && html`<div class="note warn">${`${plural(dropped.count, "row")} would be left out${lines(dropped.lines)}: no token to learn from remains.`}</div>`}
    ${answer.warnings.map(({ code, message }) => html`<div key=${message} class="note warn">${message}</div>`)}
  </div>`;
}

const lines = (found) => (found.length ? ` (line ${found.slice(0, 5).join(", ")}${found.length > 5 ? ", …" : ""})` : "");

function MemoryBar({ memory, device, fits }) {
  const whole = Math.max(device.memory_bytes, memory.total);
  const text = `${bytes(memory.total)} of ${bytes(device.free_bytes)} free on ${device.name}`;
  return html`<div class="stack tight">
    <div class="row apart"><span class="label">Memory at its peak</span><strong class=${`state ${fits ? "succeeded" : "failed"}`}>${fits ? "fits" : "does not fit"}</strong></div>
    <div class="meter" role="img" aria-label=${`Memory: ${text}. ${PARTS.map(([part, name]) => `${name} ${bytes(memory[part])}`).join(", ")}.`}>
      ${PARTS.map(([part], index) => html`<span key=${part} class=${`fill-${index + 1}`} style=${{ width: `${(memory[part] / whole) * 100}%` }}></span>`)}
      <span class="limit" style=${{ left: `calc(${(device.free_bytes / whole) * 100}% - 2px)` }}></span>
    </div>
    <p class="small numbers">${text}</p>
    <ul class="legend">${PARTS.map(([part, name], index) => html`<li key=${part}><i class=${`fill-${index + 1}`}></i>${name} ${bytes(memory[part])}</li>`)}</ul>
    ${memory.paged > 0 && html`<p class="small muted">${`${bytes(memory.paged)} more of the optimizer's may leave the device.`}</p>`}
  </div>`;
}
