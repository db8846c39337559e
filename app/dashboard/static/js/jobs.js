// Every job, the newest first, as they go: searched, filtered, and several changed at once.

import { useState } from "../vendor/htm-preact.js";
import { get } from "./api.js";
import { ago, between, count, duration, number } from "./format.js";
import { startFirstRun } from "./first_run.js";
import { Selection } from "./job_selection.js";
import { placeInLine } from "./priority.js";
import { Spark, useLosses } from "./sparks.js";
import { Action, Empty, html, Loading, Page, Problem, State, Tabs, useLoaded } from "./ui.js";

const EVERY = 2_000;
const PAGE = 25;
const PER_REQUEST = 200;
const SHOWN = [["", "All"], ["running", "Running"], ["queued", "Queued"], ["paused", "Paused"], ["succeeded", "Succeeded"], ["failed", "Failed"], ["cancelled", "Cancelled"]];
const NONE = [];

export default function Jobs() {
  const [state, setState] = useState("");
  const [search, setSearch] = useState("");
  const [most, setMost] = useState(PAGE);
  const [chosen, setChosen] = useState(new Map());
  // A long list is read less often.
  const every = EVERY * Math.ceil(most / PER_REQUEST);
  // While it is stale, the page shows the jobs of the search before: chosen, they would soon not be shown any more.
  const { value, error, isStale, reload } = useLoaded((signal) => readJobs(state, search.trim(), most, signal), [state, search, most], every, search ? 200 : 0);
  const jobs = value?.data ?? NONE;
  const losses = useLosses(jobs);
  const filter = (change) => {
    change();
    setMost(PAGE);
    setChosen(new Map());
  };
  const choose = (some, isChosen) => {
    const next = new Map(chosen);
    for (const job of some) isChosen ? next.set(job.id, job) : next.delete(job.id);
    setChosen(next);
  };
  return html`<${Page} title="Jobs" actions=${html`<a class="button primary" href="#/new">New job</a>`}>
    <div class="stack">
      <div class="row apart">
        <${Tabs} label="Jobs in state" value=${state} options=${SHOWN.map(([key, name]) => [key, withCount(name, key, value?.counts)])} onChange=${(next) => filter(() => setState(next))} />
        <input class="search" type="search" placeholder="Search names, models and notes" aria-label="Search jobs" value=${search} onInput=${({ target }) => filter(() => setSearch(target.value))} />
      </div>
      <${Problem} error=${error} />
      ${!value && !error && html`<${Loading} />`}
      ${jobs.length > 0 && html`<${Selection} jobs=${jobs} disabled=${isStale} chosen=${refresh(chosen, value)} query=${value.next && `&${toQuery(state, search.trim())}`} total=${search.trim() ? null : total(value.counts, state)} onChoose=${choose} onChange=${reload} />`}
      ${value && (jobs.length ? html`<ul class="list">${jobs.map((job) => html`<${Row} key=${job.id} job=${job} losses=${losses.get(job.id)?.losses} isChosen=${chosen.has(job.id)} disabled=${isStale} onChoose=${(isChosen) => choose([job], isChosen)} />`)}</ul>` : html`<${None} state=${state} search=${search} />`)}
      ${value?.next && html`<div><button type="button" onClick=${() => setMost(most * 2)}>Show older jobs</button></div>`}
    </div>
  <//>`;
}

/** The chosen jobs as they are now; where all that match are on the page, those that went are not among them. */
function refresh(chosen, { data, next }) {
  const here = new Map(data.map((job) => [job.id, job]));
  const known = [...chosen.values()].map((job) => here.get(job.id) ?? job);
  return next ? known : known.filter(({ id }) => here.has(id));
}

const total = (counts, state) => (state ? counts[state] : Object.values(counts).reduce((sum, one) => sum + one, 0));

function withCount(name, state, counts) {
  const found = counts && total(counts, state);
  return found ? html`${name} <span class="count">${count(found)}</span>` : name;
}

const toQuery = (state, search) => new URLSearchParams({ ...(state && { state }), ...(search && { search }) });

async function readJobs(state, search, most, signal) {
  const found = [];
  let after = null;
  const status = get("/status", { signal });
  status.catch(() => {}); // where the jobs can't be read either, theirs is the error that counts
  do {
    const query = toQuery(state, search);
    query.set("limit", Math.min(most - found.length, PER_REQUEST));
    if (after) query.set("after", after);
    const page = await get(`/jobs?${query}`, { signal });
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

function Row({ job, losses, isChosen, disabled, onChoose }) {
  const { step, total_steps: total, loss, eta_seconds: eta } = job.progress;
  return html`<li class="chosen-row"><input type="checkbox" checked=${isChosen} disabled=${disabled} aria-label=${`Choose ${job.name}`} onChange=${({ target }) => onChoose(target.checked)} />
    <a class="card job" href=${`#/job/${job.id}`}>
    <div>
      <div class="name">${job.name}</div>
      <div class="small muted wrap">${job.spec.base_model}${Object.entries(job.spec.metadata ?? {}).map(([key, value]) => html` <span class="tag" key=${key} title=${key}>${value || key}</span>`)}</div>
    </div>
    <${State} state=${job.state} />
    <div class="bar small numbers">
      ${total ? html`<progress value=${step} max=${total} aria-label=${`Steps of ${job.name}`}></progress>` : null}
      <div class="row apart muted">
        <span>${total ? `${step} / ${total}` : job.state === "running" ? (job.phase ?? "starting") : ""}${loss != null ? ` · loss ${number(loss, 3)}` : ""}${job.queue_position ? placeInLine(job) : ""}</span>
        <span>${when(job, eta)}</span>
      </div>
    </div>
    <${Spark} losses=${losses} />
  </a></li>`;
}

function when(job, eta) {
  if (job.state === "running") return eta != null ? `${duration(eta)} left` : `for ${between(job.started_at)}`;
  return ago(job.finished_at ?? job.created_at);
}
