// Every job, the newest first, as they go: searched, filtered, and several changed at once.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { get, post, remove } from "./api.js";
import { ago, between, count, duration, number, plural } from "./format.js";
import { startFirstRun } from "./first_run.js";
import { Action, Confirm, Empty, html, Loading, Page, Problem, State, Tabs, tell, useLoaded } from "./ui.js";
import { inWords } from "./words.js";

const EVERY = 2_000;
const PAGE = 25;
const SHOWN = [["", "All"], ["running", "Running"], ["queued", "Queued"], ["paused", "Paused"], ["succeeded", "Succeeded"], ["failed", "Failed"], ["cancelled", "Cancelled"]];
export const ENDED = ["succeeded", "failed", "cancelled"];

export default function Jobs() {
  const [state, setState] = useState("");
  const [search, setSearch] = useState("");
  const [most, setMost] = useState(PAGE);
  const [chosen, setChosen] = useState(new Set());
  const { value, error, reload } = useLoaded(() => readJobs(state, search.trim(), most), [state, search, most], EVERY, search ? 200 : 0);
  const button = html`<a class="button primary" href="#/new">New job</a>`;
  const jobs = value?.data ?? [];
  const here = jobs.filter(({ id }) => chosen.has(id));
  const choose = (ids, isChosen) => {
    const next = new Set(chosen);
    for (const id of ids) isChosen ? next.add(id) : next.delete(id);
    setChosen(next);
  };
  return html`<${Page} title="Jobs" actions=${button}>
    <div class="stack">
      <div class="row apart">
        <${Tabs} label="Jobs in state" value=${state} options=${SHOWN.map(([key, name]) => [key, withCount(name, key, value?.counts)])} onChange=${(next) => (setState(next), setMost(PAGE))} />
        <input class="search" type="search" placeholder="Search names, models and notes" aria-label="Search jobs" value=${search} onInput=${({ target }) => (setSearch(target.value), setMost(PAGE))} />
      </div>
      <${Problem} error=${error} />
      ${!value && !error && html`<${Loading} />`}
      ${jobs.length > 0 && html`<${Selection} jobs=${jobs} chosen=${here} onChoose=${choose} onChange=${reload} />`}
      ${value && (jobs.length ? html`<ul class="list">${jobs.map((job) => html`<${Row} key=${job.id} job=${job} isChosen=${chosen.has(job.id)} onChoose=${(isChosen) => choose([job.id], isChosen)} />`)}</ul>` : html`<${None} state=${state} search=${search} />`)}
      ${value?.next && html`<div><button type="button" onClick=${() => setMost(most + PAGE)}>Show older jobs</button></div>`}
    </div>
  <//>`;
}

function withCount(name, state, counts) {
  if (!counts) return name;
  const found = state ? counts[state] : Object.values(counts).reduce((sum, one) => sum + one, 0);
  return found ? html`${name} <span class="count">${count(found)}</span>` : name;
}

async function readJobs(state, search, most) {
  const found = [];
  let after = null;
  const status = get("/status");
  status.catch(() => {}); // where the jobs can't be read either, theirs is the error that counts
  do {
    const query = new URLSearchParams({ limit: Math.min(most - found.length, 200) });
    if (state) query.set("state", state);
    if (search) query.set("search", search);
    if (after) query.set("after", after);
    const page = await get(`/jobs?${query}`);
    found.push(...page.data);
    after = page.next;
  } while (after && found.length < most);
  // The counts are of all jobs, whatever is searched for.
  return { data: found, next: after, counts: (await status).queue.by_state };
}

const None = ({ state, search }) => {
  if (search) return html`<${Empty} title=${`No job matches “${search}”`} />`;
  if (state) return html`<${Empty} title=${`No job is ${state}`} />`;
  return html`<${Empty} title="No job yet">
    <p>Give a base model some rows to learn from, and watch its loss fall. The example teaches a small model to answer questions about Tunesmith, and compares the two.</p>
    <div class="row"><${Action} class="primary" onClick=${startFirstRun}>Try it with the example data<//><a class="button" href="#/new">Start with your own data</a></div>
  <//>`;
};

/** What can be done with the chosen jobs together. */
function Selection({ jobs, chosen, onChoose, onChange }) {
  const [asked, setAsked] = useState(null);
  const all = jobs.every((job) => chosen.includes(job));
  const going = chosen.filter(({ state }) => !ENDED.includes(state));
  const ended = chosen.filter(({ state }) => ENDED.includes(state));
  const carryOut = async () => {
    const { jobs: doomed, act, done } = asked;
    const results = await inTurn(doomed, act);
    const refused = results.filter(Boolean);
    if (refused.length < doomed.length) tell(`${plural(doomed.length - refused.length, "job")} ${done}.`, "good");
    if (refused.length) tell(`${plural(refused.length, "job")} not: ${inWords(`${refused[0].message} ${refused[0].hint ?? ""}`)}`, "bad");
    onChoose(doomed.map(({ id }) => id), false);
    await onChange();
  };
  return html`<div class="row selection">
    <label class="check small"><input type="checkbox" checked=${all} onChange=${() => onChoose(jobs.map(({ id }) => id), !all)} />
      ${chosen.length ? `${plural(chosen.length, "job")} chosen` : "Choose all shown"}</label>
    ${going.length > 0 && html`<button type="button" class="small danger" onClick=${() => setAsked({ jobs: going, title: `Cancel ${plural(going.length, "job")}?`, label: "Cancel them", text: "Running ones stop after their present step and keep their last checkpoint; a retry goes on from there.", act: ({ id }) => post(`/jobs/${id}/cancel`), done: "cancelled" })}>Cancel ${count(going.length)}</button>`}
    ${ended.length > 0 && html`<button type="button" class="small danger" onClick=${() => setAsked({ jobs: ended, title: `Delete ${plural(ended.length, "job")}?`, label: "Delete for good", text: "Their curves, logs and checkpoints go. A job whose adapter exists stays: delete the adapter first.", act: ({ id }) => remove(`/jobs/${id}`), done: "deleted" })}>Delete ${count(ended.length)}</button>`}
    ${asked && html`<${Confirm} title=${asked.title} label=${asked.label} onClose=${() => setAsked(null)} onConfirm=${carryOut}><p>${asked.text}</p><//>`}
  </div>`;
}

/** The error of each, or null where it went well. One after the other: each is a write. */
async function inTurn(jobs, act) {
  const found = [];
  for (const job of jobs) found.push(await act(job).then(() => null, (error) => error));
  return found;
}

function Row({ job, isChosen, onChoose }) {
  const { step, total_steps: total, loss, eta_seconds: eta } = job.progress;
  return html`<li class="chosen-row"><input type="checkbox" checked=${isChosen} aria-label=${`Choose ${job.name}`} onChange=${({ target }) => onChoose(target.checked)} />
    <a class="card job" href=${`#/job/${job.id}`}>
    <div>
      <div class="name">${job.name}</div>
      <div class="small muted wrap">${job.spec.base_model}${Object.entries(job.spec.metadata ?? {}).map(([key, value]) => html` <span class="tag" key=${key} title=${key}>${value || key}</span>`)}</div>
    </div>
    <${State} state=${job.state} />
    <div class="bar small numbers">
      ${total ? html`<progress value=${step} max=${total} aria-label=${`Steps of ${job.name}`}></progress>` : null}
      <div class="row apart muted">
        <span>${total ? `${step} / ${total}` : job.state === "running" ? (job.phase ?? "starting") : ""}${loss != null ? ` · loss ${number(loss, 3)}` : ""}${job.queue_position ? placeInLine(job.queue_position) : ""}</span>
        <span>${when(job, eta)}</span>
      </div>
    </div>
    <${Spark} job=${job} />
  </a></li>`;
}

export const placeInLine = (place) => (place === 1 ? "next in line" : `number ${count(place)} in line`);

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
