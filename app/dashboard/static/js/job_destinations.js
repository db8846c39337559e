// Where a job's curves and its adapter go besides this service: its runs in trackers, its push to the Hub.

import { post } from "./api.js";
import { count } from "./format.js";
import { Action, Card, html, Problem, State } from "./ui.js";

const TRACKERS = { wandb: "Weights & Biases", mlflow: "MLflow", trackio: "trackio" };

export function Destinations({ job, onChange }) {
  const trackers = (job.spec.report_to ?? []).filter((tracker) => TRACKERS[tracker]);
  const wanted = job.spec.push_to_hub;
  if (!trackers.length && !wanted) return null;
  return html`<${Card} title=${[trackers.length && "Trackers", wanted && "Hub"].filter(Boolean).join(" and ")}>
    <ul class="list">
      ${trackers.map((tracker) => html`<${TrackedRun} key=${tracker} name=${TRACKERS[tracker]} run=${job.tracked_runs.find((run) => run.tracker === tracker)} />`)}
      ${wanted && html`<${Push} job=${job} wanted=${wanted} onChange=${onChange} />`}
    </ul>
  <//>`;
}

function TrackedRun({ name, run }) {
  const points = run && `${count(run.points)} ${run.points === 1 ? "point" : "points"}`;
  return html`<li class="stack tight">
    <div class="row apart">
      <span class="row"><strong>${name}</strong>${run?.run_id && !run.url && html`<span class="small muted wrap">${`run ${run.run_id}`}</span>`}</span>
      <span class="row"><span class="small muted numbers">${run ? points : "once a worker has begun"}</span>${run?.url && html`<${Link} to=${run.url}>Open the run<//>`}</span>
    </div>
    ${run?.problem && html`<div class="note warn">${run.problem}</div>`}
  </li>`;
}

function Push({ job, wanted, onChange }) {
  const { push } = job;
  const details = [wanted.repository, wanted.revision && `branch ${wanted.revision}`, wanted.private ? "private" : "public", wanted.content === "merged" && "merged model", ...wanted.tags].filter(Boolean);
  const retry = async () => {
    await post(`/exports/${push.export}/retry`);
    await onChange();
  };
  return html`<li class="stack tight">
    <div class="row apart">
      <span class="row"><strong>Hub</strong><span class="small muted wrap">${details.join(", ")}</span></span>
      <span class="row">
        ${push ? html`<${State} state=${push.state} />` : html`<span class="small muted">${waits(job)}</span>`}
        ${push?.url && html`<${Link} to=${push.url}>Open on the Hub<//>`}
        ${["failed", "cancelled"].includes(push?.state) && html`<${Action} class="small" onClick=${retry}>Retry<//>`}
      </span>
    </div>
    <${Problem} error=${push?.error} />
  </li>`;
}

function waits({ state, adapter }) {
  if (["failed", "cancelled"].includes(state)) return "not pushed";
  return state === "succeeded" && adapter ? "its export was deleted" : "pushed once the job has succeeded";
}

// A tracker may have an address that no browser opens.
const Link = ({ to, children }) => /^https?:/.test(to) && html`<a href=${to} target="_blank" rel="noreferrer">${children}</a>`;
