// Every job, the newest first, as they go.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { get } from "./api.js";
import { ago, between, duration, number } from "./format.js";
import { Empty, html, Loading, Page, Problem, State, Tabs, useLoaded } from "./ui.js";

const EVERY = 2_000;
const PAGE = 25;
const SHOWN = [["", "All"], ["running", "Running"], ["queued", "Queued"], ["paused", "Paused"], ["succeeded", "Succeeded"], ["failed", "Failed"], ["cancelled", "Cancelled"]];

export default function Jobs() {
  const [state, setState] = useState("");
  const [most, setMost] = useState(PAGE);
  const { value, error } = useLoaded(() => readJobs(state, most), [state, most], EVERY);
  const button = html`<a class="button primary" href="#/new">New job</a>`;
  return html`<${Page} title="Jobs" actions=${button}>
    <div class="stack">
      <div><${Tabs} label="Jobs in state" value=${state} options=${SHOWN} onChange=${setState} /></div>
      <${Problem} error=${error} />
      ${!value && !error && html`<${Loading} />`}
      ${value && (value.data.length ? html`<ul class="list">${value.data.map((job) => html`<${Row} key=${job.id} job=${job} />`)}</ul>` : html`<${None} state=${state} />`)}
      ${value?.next && html`<div><button type="button" onClick=${() => setMost(most + PAGE)}>Show older jobs</button></div>`}
    </div>
  <//>`;
}

async function readJobs(state, most) {
  const found = [];
  let after = null;
  do {
    const query = new URLSearchParams({ limit: Math.min(most - found.length, 200) });
    if (state) query.set("state", state);
    if (after) query.set("after", after);
    const page = await get(`/jobs?${query}`);
    found.push(...page.data);
    after = page.next;
  } while (after && found.length < most);
  return { data: found, next: after };
}

const None = ({ state }) =>
  state
    ? html`<${Empty} title=${`No job is ${state}`} />`
    : html`<${Empty} title="No job yet">
        <p>Give a base model some rows to learn from, and watch its loss fall.</p>
        <div class="row"><a class="button primary" href="#/new">Start the first one</a></div>
      <//>`;

function Row({ job }) {
  const { step, total_steps: total, loss, eta_seconds: eta } = job.progress;
  return html`<li><a class="card job" href=${`#/job/${job.id}`}>
    <div>
      <div class="name">${job.name}</div>
      <div class="small muted wrap">${job.spec.base_model}</div>
    </div>
    <${State} state=${job.state} />
    <div class="bar small numbers">
      ${total ? html`<progress value=${step} max=${total} aria-label=${`Steps of ${job.name}`}></progress>` : null}
      <div class="row apart muted">
        <span>${total ? `${step} / ${total}` : job.state === "running" ? (job.phase ?? "starting") : ""}${loss != null ? ` · loss ${number(loss, 3)}` : ""}</span>
        <span>${when(job, eta)}</span>
      </div>
    </div>
    <${Spark} job=${job} />
  </a></li>`;
}

function when(job, eta) {
  if (job.state === "running") return eta != null ? `${duration(eta)} left` : `for ${between(job.started_at)}`;
  return ago(job.finished_at ?? job.created_at);
}

const curves = new Map();

/** The losses so far. Asked for again only after the job has moved on. */
function Spark({ job }) {
  const [points, setPoints] = useState(curves.get(job.id)?.points ?? []);
  const mark = `${job.progress.step}/${job.state}`;
  useEffect(() => {
    const known = curves.get(job.id);
    if (known?.mark === mark || !job.progress.step) return;
    get(`/jobs/${job.id}/metrics`).then(
      ({ data }) => {
        const found = data.filter(({ kind, loss }) => kind === "train" && loss != null).map(({ loss }) => loss);
        curves.set(job.id, { mark, points: found });
        setPoints(found);
      },
      () => {}, // the list itself says that the API does not answer
    );
  }, [mark]);
  const label = points.length > 1 ? `Loss from ${number(points[0], 3)} to ${number(points.at(-1), 3)}` : "No loss yet";
  return html`<svg class="spark" viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label=${label}>
    ${points.length > 1 && html`<polyline points=${trace(points)} vector-effect="non-scaling-stroke" />`}
  </svg>`;
}

function trace(points) {
  const step = Math.max(1, Math.floor(points.length / 100));
  const kept = points.filter((_, index) => index % step === 0 || index === points.length - 1);
  const low = Math.min(...kept);
  const span = Math.max(...kept) - low || 1;
  return kept.map((loss, index) => `${((index / (kept.length - 1)) * 100).toFixed(1)},${(28 - ((loss - low) / span) * 26).toFixed(1)}`).join(" ");
}
