// A small curve of the training loss for each job of a list. All are asked for together, and again once a job has moved on.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { get } from "./api.js";
import { number } from "./format.js";
import { html } from "./ui.js";

const POINTS = 60;
const PER_REQUEST = 200;
const known = new Map();

const markOf = ({ progress, state }) => `${progress.step}/${state}`;

/** The losses by job, fetched where a job of the list has moved on since. */
export function useLosses(jobs) {
  const [, setTurn] = useState(0);
  useEffect(() => {
    const moved = jobs.filter((job) => job.progress.step && known.get(job.id)?.mark !== markOf(job));
    if (!moved.length) return;
    // The list itself says where the API does not answer.
    fetchLosses(moved).then(() => setTurn((turn) => turn + 1), () => {});
  }, [jobs]);
  return known;
}

async function fetchLosses(jobs) {
  for (let start = 0; start < jobs.length; start += PER_REQUEST) {
    const some = jobs.slice(start, start + PER_REQUEST);
    const query = some.map(({ id }) => `job=${encodeURIComponent(id)}`).join("&");
    const { data } = await get(`/jobs/losses?points=${POINTS}&${query}`);
    const found = new Map(data.map(({ job, losses }) => [job, losses]));
    for (const job of some) known.set(job.id, { mark: markOf(job), losses: found.get(job.id) ?? [] });
  }
}

export function Spark({ losses = [] }) {
  const label = losses.length > 1 ? `Loss from ${number(losses[0], 3)} to ${number(losses.at(-1), 3)}` : "No loss yet";
  return html`<svg class="spark" viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label=${label}>
    ${losses.length > 1 && html`<polyline points=${trace(losses)} vector-effect="non-scaling-stroke" />`}
  </svg>`;
}

function trace(losses) {
  const low = Math.min(...losses);
  const span = Math.max(...losses) - low || 1;
  return losses.map((loss, index) => `${((index / (losses.length - 1)) * 100).toFixed(1)},${(28 - ((loss - low) / span) * 26).toFixed(1)}`).join(" ");
}
