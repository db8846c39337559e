// What can be done with several jobs of the list together: choose them, cancel, delete.

import { useState } from "../vendor/htm-preact.js";
import { getAll, post, remove } from "./api.js";
import { count, plural } from "./format.js";
import { Action, Confirm, html, tell } from "./ui.js";
import { inWords } from "./words.js";

const MOST = 10_000;
export const ENDED = ["succeeded", "failed", "cancelled"];

const CANCEL = { verb: "Cancel", label: "Cancel them", done: "cancelled", act: ({ id }) => post(`/jobs/${id}/cancel`), text: "Running ones stop after their present step and keep their last checkpoint; a retry goes on from there." };
const DELETE = { verb: "Delete", label: "Delete for good", done: "deleted", act: ({ id }) => remove(`/jobs/${id}`), text: "Their curves, logs and checkpoints go. A job whose adapter exists stays: delete the adapter first." };

/**
 * `jobs` are those on the page, `chosen` those that are chosen; while `disabled`, none can be chosen. `query` finds all
 * that match where the page has not all of them, and `total` says how many they are, if that is known.
 */
export function Selection({ jobs, disabled, chosen, query, total, onChoose, onChange }) {
  const [asked, setAsked] = useState(null);
  const ids = new Set(chosen.map(({ id }) => id));
  const isEach = jobs.every(({ id }) => ids.has(id));
  const going = chosen.filter(({ state }) => !ENDED.includes(state));
  const ended = chosen.filter(({ state }) => ENDED.includes(state));
  const offer = (what, found) => found.length > 0 && html`<button type="button" class="small danger" onClick=${() => setAsked({ ...what, jobs: found })}>${what.verb} ${count(found.length)}</button>`;
  return html`<div class="row selection">
    <label class="check small"><input type="checkbox" checked=${isEach} disabled=${disabled} onChange=${() => onChoose(isEach ? chosen : jobs, !isEach)} />
      ${chosen.length ? `${plural(chosen.length, "job")} chosen` : "Choose all shown"}</label>
    ${query && !disabled && isEach && chosen.length === jobs.length && html`<${Action} class="small" onClick=${async () => onChoose(await getAll("/jobs", MOST, query), true)}>${total ? `Choose all ${count(total)}` : "Choose all that match"}<//>`}
    ${offer(CANCEL, going)}${offer(DELETE, ended)}
    ${asked && html`<${Together} ...${asked} onClose=${() => setAsked(null)} onDone=${async () => (onChoose(asked.jobs, false), await onChange())} />`}
  </div>`;
}

/** Asks, carries it out, and says what was refused. */
function Together({ jobs, verb, label, text, act, done, onDone, onClose }) {
  const [past, setPast] = useState(0);
  const carryOut = async () => {
    const refused = [];
    // One after the other: each is a write.
    for (const [index, job] of jobs.entries()) {
      setPast(index);
      await act(job).catch((error) => refused.push(error));
    }
    if (refused.length < jobs.length) tell(`${plural(jobs.length - refused.length, "job")} ${done}.`, "good");
    if (refused.length) tell(`${plural(refused.length, "job")} not: ${inWords(`${refused[0].message} ${refused[0].hint ?? ""}`)}`, "bad");
    await onDone();
  };
  return html`<${Confirm} title=${`${verb} ${plural(jobs.length, "job")}?`} label=${label} onClose=${onClose} onConfirm=${carryOut}>
    <p>${text}</p>
    ${past > 0 && html`<progress value=${past} max=${jobs.length} aria-label="Jobs done"></progress>`}
  <//>`;
}
