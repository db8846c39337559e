// The priority of work that waits for a worker, and its place in the queue. Knows no kind of work.

import { useState } from "../vendor/htm-preact.js";
import { patch } from "./api.js";
import { count } from "./format.js";
import { Field, html, Problem } from "./ui.js";

const LOWEST = -10;
const HIGHEST = 10;
const PRIORITIES = Array.from({ length: HIGHEST - LOWEST + 1 }, (_, index) => HIGHEST - index);

/** Where waiting work stands, with its priority where that is not the usual one. */
export function placeInLine({ queue_position: place, spec }) {
  const priority = spec.priority ? `, priority ${spec.priority}` : "";
  return `${place === 1 ? "next in line" : `number ${count(place)} in line`}${priority}`;
}

/** A choice of a priority. `onChange` is called with the number. */
export const PriorityField = ({ id, value, onChange }) => html`<${Field} id=${id} label="Priority" help="Higher is taken first; above 0 needs a key with admin.">
  <select id=${id} aria-describedby=${`${id}-help`} value=${String(value)} onChange=${({ target }) => onChange(Number(target.value))}>${PRIORITIES.map((one) => html`<option key=${one} value=${String(one)}>${one === 0 ? "0, as usual" : String(one)}</option>`)}</select>
<//>`;

/** The priority of the waiting work at `path` of the API, as a choice that changes it at once. */
export function WaitingPriority({ path, work, onChange }) {
  const [failure, setFailure] = useState(null);
  const change = async (priority) => {
    setFailure(null);
    try {
      await patch(path, { priority });
    } catch (error) {
      setFailure(error);
    }
    await onChange();
  };
  return html`<div class="stack tight">
    <${PriorityField} id=${`priority-${work.id}`} value=${work.spec.priority ?? 0} onChange=${change} />
    <${Problem} error=${failure} />
  </div>`;
}
