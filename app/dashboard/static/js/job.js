// One job: its curves and its log as they come, and what may be done with it.

import { useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { download, get, patch, post, remove } from "./api.js";
import { openPlayground } from "./first_run.js";
import { JobCharts } from "./job_charts.js";
import { Destinations } from "./job_destinations.js";
import { ENDED } from "./job_selection.js";
import { JobLog } from "./job_log.js";
import { between, bytes, count, duration, moment, number } from "./format.js";
import { Curve } from "./curves.js";
import { FinalEvaluation } from "./final_evaluation.js";
import { placeInLine, WaitingPriority } from "./priority.js";
import { JobSamples } from "./samples.js";
import { toEntries, toText } from "./spec_form.js";
import { followJob } from "./stream.js";
import { Action, Card, Confirm, Copy, Facts, html, Loading, Page, Problem, State, tell, useLoaded } from "./ui.js";

const EVERY = 2_000;

export default function Job({ id, query }) {
  const { value: job, error, reload } = useLoaded(() => get(`/jobs/${encodeURIComponent(id)}`), [id], EVERY);
  const [turn, setTurn] = useState(0);
  const story = useStory(id, turn, reload);
  const isFirstRun = query.get("then") === "playground";
  useEffect(() => {
    if (isFirstRun && job?.state === "succeeded" && job.adapter) openPlayground(job.adapter).catch(() => {});
  }, [isFirstRun, job?.state, job?.adapter]);
  if (!job) return html`<${Page} title="Job">${error ? html`<${Problem} error=${error} />` : html`<${Loading} />`}<//>`;
  // Every job has events. Charts that came before them would grow, and move what is below.
  const isRead = story.total > 0 || story.error || !story.isConnected;
  const changed = async (isRestarted) => {
    await reload();
    if (isRestarted) setTurn(turn + 1);
  };
  return html`<${Page} title=${job.name} crumb=${html`<a href="#/jobs">Jobs</a> / ${job.id}`} actions=${html`<${Controls} job=${job} onChange=${changed} />`}>
    <div class="stack">
      ${!story.isConnected && html`<div class="note warn" role="status">The connection is gone. What is missed meanwhile is fetched as soon as the API answers again.</div>`}
      <${Problem} error=${story.error} />
      ${isFirstRun && !ENDED.includes(job.state) && html`<div class="note" role="status">When the job is done, the base model and the adapter answer the same question next to each other.</div>`}
      ${job.error && html`<${Problem} error=${job.error} />`}
      ${job.cancel_requested_at && job.state === "running" && html`<div class="note warn">It stops after its present step.</div>`}
      ${job.pause_requested_at && job.state === "running" && html`<div class="note warn" role="status">It pauses after its present step.</div>`}
      <${Summary} job=${job} last=${story.last} onChange=${reload} />
      <${Destinations} job=${job} onChange=${reload} />
      ${isRead ? html`
        <${JobCharts} job=${job} curve=${story.curve} version=${story.version} compared=${query.getAll("compare")} />
        <${FinalEvaluation} found=${job.final_evaluation} />
        <${JobSamples} samples=${story.samples} isOver=${ENDED.includes(job.state)} />
        <${JobLog} events=${story.lines} total=${story.total} jobId=${job.id} />
        <div class="grid top"><div class="stack"><${Notes} key=${job.id} job=${job} onChange=${reload} /><${Attempts} job=${job} /></div><${Spec} job=${job} /></div>`
      : html`<${Loading} />`}
    </div>
  <//>`;
}

/** Everything that happened to the job, from its event stream. `turn` begins again, after a retry. */
function useStory(id, turn, onState) {
  const story = useRef(null);
  const [version, setVersion] = useState(0);
  const [isConnected, setConnected] = useState(true);
  const [error, setError] = useState(null);
  useEffect(() => {
    story.current = { curve: new Curve(), samples: new Map(), lines: [], total: 0, last: null };
    setError(null);
    return followJob(id, {
      onEvents(events) {
        const { curve, lines } = story.current;
        for (const event of events) {
          curve.add(event);
          if (event.type === "metrics") story.current.last = event.data;
          if (event.type === "samples") story.current.samples.set(event.data.step, event.data);
          lines.push(event);
        }
        story.current.total += events.length;
        story.current.lines = lines.slice(-2_000);
        if (events.some(({ type }) => type === "state")) onState();
        setVersion((before) => before + 1);
      },
      onConnection: setConnected,
      onEnd: onState,
      onError: setError,
    });
  }, [id, turn]);
  const found = story.current ?? { curve: new Curve(), samples: new Map(), lines: [], total: 0, last: null };
  return { ...found, version, isConnected, error };
}

function Controls({ job, onChange }) {
  const [isCancelling, setCancelling] = useState(false);
  const [isDeleting, setDeleting] = useState(false);
  const act = (verb, isRestarted) => async () => {
    await post(`/jobs/${job.id}/${verb}`);
    await onChange(isRestarted);
  };
  const isOn = !ENDED.includes(job.state);
  return html`
    ${job.adapter && html`<a class="button primary" href=${`#/playground?adapter=${job.adapter}`}>Try it</a><a class="button" href=${`#/adapter/${job.adapter}`}>Adapter</a>`}
    ${job.state === "paused" && html`<${Action} class="primary" onClick=${act("resume")}>Resume<//>`}
    ${isOn && job.pause_requested_at && html`<${Action} onClick=${act("resume")}>Go on after all<//>`}
    ${["queued", "running"].includes(job.state) && !job.pause_requested_at && html`<${Action} onClick=${act("pause")}>Pause<//>`}
    ${["failed", "cancelled"].includes(job.state) && html`<${Action} class="primary" onClick=${act("retry", true)}>Retry<//>`}
    <a class="button" href=${`#/new?from=${job.id}`}>Clone and edit</a>
    ${isOn && html`<button type="button" class="danger" onClick=${() => setCancelling(true)}>Cancel</button>`}
    ${!isOn && html`<button type="button" class="danger" onClick=${() => setDeleting(true)}>Delete</button>`}
    ${isDeleting && html`<${Confirm} title=${`Delete ${job.name}?`} label="Delete it for good" onClose=${() => setDeleting(false)}
      onConfirm=${async () => {
        await remove(`/jobs/${job.id}`);
        tell(`${job.name} is deleted.`, "good");
        location.hash = "#/jobs";
      }}>
      <p>Its curves, log and checkpoints go. While an adapter that it made exists, it stays: delete the adapter first.</p>
    <//>`}
    ${isCancelling && html`<${Confirm} title=${`Cancel ${job.name}?`} label="Cancel the job" onClose=${() => setCancelling(false)}
      onConfirm=${async () => {
        await act("cancel")();
        tell("The job was asked to stop.", "good");
      }}>
      <p>${job.state === "running" ? "It stops after its present step and keeps its last checkpoint; a retry goes on from there. No adapter is made." : "It leaves the queue. A retry puts it back."}</p>
    <//>`}`;
}

function Summary({ job, last, onChange }) {
  const { step, total_steps: total, epoch, loss, eta_seconds: eta } = job.progress;
  return html`<${Card}>
    <div class="stack tight">
      <div class="row apart"><${State} state=${job.state} phase=${job.phase} />
        <span class="small muted numbers">${job.queue_position ? placeInLine(job) : total ? `step ${count(step)} of ${count(total)}` : ""}</span></div>
      ${job.waiting_for && html`<div class="note" role="status">It waits for ${job.waiting_for}.</div>`}
      ${["queued", "paused"].includes(job.state) && html`<${WaitingPriority} path=${`/jobs/${job.id}`} work=${job} onChange=${onChange} />`}
      <progress value=${step} max=${total ?? 1} aria-label="Steps done"></progress>
      <${Facts} facts=${[
        ["Loss", number(loss)],
        ["Epoch", number(epoch, 3)],
        job.state === "running" && ["Time left", duration(eta)],
        ["Time", between(job.started_at, job.finished_at)],
        last && ["Tokens a second", count(last.tokens_per_second)],
        last && ["Tokens", count(last.tokens)],
        last?.memory_bytes && ["Peak memory", bytes(last.memory_bytes)],
        last?.gpu_utilization_percent != null && ["GPU use", `${count(last.gpu_utilization_percent)}%`],
        ["Submitted", moment(job.created_at)],
      ]} />
    </div>
  <//>`;
}

/** Notes and tags: the job's metadata, which may be changed in any state. */
function Notes({ job, onChange }) {
  const [draft, setDraft] = useState(null);
  const entries = Object.entries(job.spec.metadata ?? {});
  const save = async () => {
    await patch(`/jobs/${job.id}`, { metadata: toEntries(draft) });
    setDraft(null);
    await onChange();
  };
  const edit = html`<button type="button" class="small" onClick=${() => setDraft(toText(job.spec.metadata))}>Edit</button>`;
  return html`<${Card} title="Notes and tags" actions=${draft == null && edit}>
    ${draft == null
      ? entries.length ? html`<${Facts} facts=${entries} />` : html`<p class="muted small">None yet. The search on the page Jobs finds them.</p>`
      : html`<div class="stack tight"><textarea aria-label="Notes and tags" rows="4" placeholder="team: support" value=${draft} onInput=${({ target }) => setDraft(target.value)}></textarea>
          <p class="small muted">One key: value a line.</p>
          <div class="row"><${Action} class="primary small" onClick=${save}>Save<//><button type="button" class="small" onClick=${() => setDraft(null)}>Leave it</button></div></div>`}
  <//>`;
}

const EXITS = { handed_back: "handed back: the worker stopped", worker_lost: "the worker was lost", process_died: "the process died" };

const Attempts = ({ job }) => html`<${Card} title="Attempts">
  ${job.attempts.length === 0 && html`<p class="muted">None yet: it waits for a worker.</p>`}
  ${job.attempts.length > 0 && html`<div class="scroll"><table>
    <thead><tr><th scope="col">#</th><th scope="col">Worker</th><th scope="col">Took</th><th scope="col">Ended</th></tr></thead>
    <tbody>${job.attempts.map((attempt) => html`<tr key=${attempt.number}>
      <td>${attempt.number}</td><td class="mono wrap">${attempt.worker}</td>
      <td>${between(attempt.started_at, attempt.ended_at)}</td>
      <td>${attempt.exit_reason ? (EXITS[attempt.exit_reason] ?? attempt.exit_reason) : "goes on"}</td>
    </tr>`)}</tbody></table></div>`}
<//>`;

function Spec({ job }) {
  const text = JSON.stringify(job.spec, null, 2);
  const actions = html`<${Copy} text=${text}>Copy<//>
    <${Action} class="small" onClick=${() => download(`/jobs/${job.id}/metrics?format=csv`, `${job.name}.csv`)}>Curve as CSV<//>`;
  return html`<${Card} title="Job spec" actions=${actions}><pre class="code" tabindex="0" aria-label="The job's specification">${text}</pre><//>`;
}
