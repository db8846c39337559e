// Whether a job of the default settings on a base model fits into the memory of the worker's device.

import { get } from "./api.js";
import { bytes, count } from "./format.js";
import { html, useLoaded } from "./ui.js";

const estimates = new Map();
let last = Promise.resolve();

/** The estimate, or null where there is none; one after the other, since a single process makes them. */
function estimate(name) {
  if (!estimates.has(name)) {
    const turn = last.then(() => get(`/models/fit?base_model=${encodeURIComponent(name)}`)).catch((error) => {
      // No engine yet, or the Hub is away: the next look tries again.
      if (error.status !== 422) estimates.delete(name);
      return error.status === 422 ? { error } : null;
    });
    last = turn;
    estimates.set(name, turn);
  }
  return estimates.get(name);
}

export function Fit({ name }) {
  const { value, isLoading } = useLoaded(() => estimate(name), [name]);
  if (!value) return html`<span class="small muted">${isLoading ? "…" : "memory not known"}</span>`;
  if (value.error) return html`<span class="state failed" title=${value.error.hint}>can't be trained</span>`;
  const where = value.is_gpu ? "your GPU" : "this machine";
  const text = value.fits ? `Fits ${where}` : `Does not fit: needs about ${bytes(value.needed_bytes)} of ${bytes(value.memory_bytes)}`;
  const basis = `QLoRA with the default settings needs about ${bytes(value.needed_bytes)} of ${bytes(value.memory_bytes)} on ${value.device}: batches of ${value.batch_size}, rows of ${count(value.row_tokens)} tokens. Smaller ones need less.`;
  return html`<span class=${`state ${value.fits ? "succeeded" : "failed"} fit`} title=${basis}>${text}</span>`;
}

const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"]];

/** `7.2B parameters` */
export function parameters(number) {
  if (!number) return null;
  const [size, unit] = UNITS.find(([least]) => number >= least) ?? [1, ""];
  return `${(number / size).toFixed(unit ? 1 : 0)}${unit} parameters`;
}

/** What is known of a model of the Hub, as a line. */
export const about = (model) =>
  [parameters(model.parameters), model.size_bytes && bytes(model.size_bytes), model.license, model.is_gated && "gated: accept its terms on its page"].filter(Boolean).join(" · ");
