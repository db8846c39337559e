// The box: workers and their devices, the queue, disks, versions.

import { useState } from "../vendor/htm-preact.js";
import { get, send, Unreachable } from "./api.js";
import { ago, bytes, count, percent, plural } from "./format.js";
import { Keys } from "./keys.js";
import { Card, Confirm, Facts, Field, html, Loading, Page, Problem, State, tell, useLoaded } from "./ui.js";

export default function Status() {
  const { value, error } = useLoaded(readAll, [], 3_000);
  return html`<${Page} title="Status">
    <div class="stack">
      <${Problem} error=${error} />
      ${!value && !error && html`<${Loading} />`}
      ${value && html`<${Box} ...${value} />`}
    </div>
  <//>`;
}

async function readAll() {
  const [status, readiness] = await Promise.all([get("/status"), readReadiness()]);
  return { status, readiness };
}

/** The body of a 503 has the reasons. */
async function readReadiness() {
  try {
    return await (await fetch("/ready")).json();
  } catch {
    throw new Unreachable();
  }
}

const Box = ({ status, readiness }) => html`
  <div class=${`note ${readiness.ready ? "good" : "warn"}`} role="status">
    <strong>${readiness.ready ? "Ready: jobs run and models answer." : "Not ready yet."}</strong>
    ${readiness.reasons.map((reason) => html`<div key=${reason}>${reason}</div>`)}
  </div>
  <div class="grid">
    ${status.workers.map((worker) => html`<${Worker} key=${worker.id} worker=${worker} />`)}
    ${status.workers.length === 0 && html`<${Card} title="No worker"><p class="muted">Start one: python -m worker</p><//>`}
    <${Queue} queue=${status.queue} />
    <${Card} title="Stored"><${Facts} facts=${[
      ["Datasets", `${count(status.datasets.count)}, ${bytes(status.datasets.size_bytes)}`],
      ["Adapters", `${count(status.adapters.count)}, ${bytes(status.adapters.size_bytes)}`],
    ]} />
    <//>
    <${Card} title="Disk"><div class="stack">${gather(status.disks).map((disk) => html`<${Disk} key=${disk.folder} disk=${disk} />`)}</div><//>
    <${Stored} />
    <${Keys} />
    <${Card} title="Versions"><${Facts} facts=${[
      ["Tunesmith", status.versions.tunesmith],
      ["Python", status.versions.python],
      ["Database", status.versions.database],
      ["API started", ago(status.started_at)],
    ]} /><p class="small"><a href="/docs">Every call of the API</a></p><//>
  </div>`;

function Worker({ worker }) {
  const { device, engine } = worker;
  const devices = worker.devices.length ? worker.devices : [device];
  const bases = engine?.bases ?? [];
  return html`<${Card} title=${devices.length > 1 ? `${devices.length} × ${device.name}` : (device.name ?? "Worker")}>
    <div class="stack">
      ${worker.problems.map((problem) => html`<div key=${problem} class="note bad">${problem}</div>`)}
      ${devices.map((one, place) => html`<${Device} key=${one.uuid ?? place} device=${one} isOne=${devices.length === 1} />`)}
      <${Facts} facts=${[
        ["Does", worker.roles.join(", ")],
        ["torch", device.torch_version],
        ["Last heartbeat", ago(worker.heartbeat_at)],
      ]} />
      ${engine && html`<ul class="list small">
        ${bases.map((base) => html`<li key=${base.base_model.name}><${State} state="loaded" /> ${base.base_model.name}, ${base.weight_bits} bits, ${plural(base.adapters.length, "adapter")} loaded</li>`)}
        ${engine.loading && html`<li><${State} state="loading" /> ${engine.loading.base_model.name}</li>`}
        ${engine.paused_by && html`<li><${State} state="paused" /> Serving waits for <a href=${`#/job/${engine.paused_by}`}>a job</a></li>`}
        ${engine.shares_with && html`<li>Shares the device with <a href=${`#/job/${engine.shares_with}`}>a job</a></li>`}
        ${engine.waiting.map(({ base_model: base, count: waiting }) => html`<li key=${base.name}>${plural(waiting, "request")} for ${base.name} ${waiting === 1 ? "waits" : "wait"}</li>`)}
        ${bases.length === 0 && !engine.loading && !engine.paused_by && html`<li class="muted">No base model is loaded; the first request loads one.</li>`}
      </ul>`}
      <p class="small muted mono wrap">${worker.id}</p>
    </div>
  <//>`;
}

/** One device: what it does, its memory, how busy it is. */
function Device({ device, isOne }) {
  const label = isOne ? "Memory" : `GPU ${device.index}`;
  const busy = device.utilization_percent != null && `${device.utilization_percent}% busy`;
  const warm = device.temperature_celsius != null && `${device.temperature_celsius} °C`;
  return html`<div class="stack tight">
    ${device.free_bytes != null && html`<${Use} label=${label} used=${device.memory_bytes - device.free_bytes} total=${device.memory_bytes} />`}
    <p class="small muted">${!isOne && device.free_bytes == null ? `${label}: ` : ""}${[device.state, busy, warm].filter(Boolean).join(", ")}${device.job && html`, <a href=${`#/job/${device.job}`}>its job</a>`}</p>
    ${!isOne && device.uuid && html`<p class="small muted mono wrap">${device.uuid}</p>`}
  </div>`;
}

const Queue = ({ queue }) => html`<${Card} title="Jobs">
  <div class="stack">
    <${Facts} facts=${Object.entries(queue.by_state).map(([state, found]) => [state, count(found)])} />
    ${queue.oldest_queued_at && html`<p class="small muted">The one that waits longest was submitted ${ago(queue.oldest_queued_at)}.</p>`}
  </div>
<//>`;

const STORED = {
  checkpoints: ["Checkpoints", "A failed or cancelled job without them is retried from its first step."],
  tensorboard: ["TensorBoard files", "Curves for TensorBoard; those of this dashboard stay."],
  logs: ["Log files of attempts", "What the training processes wrote themselves; the jobs' own logs stay."],
  events: ["Events of jobs", "Their logs and curves here. The jobs stay, without them."],
  exports: ["Exports", "They can be made again. What was pushed to the Hub stays there."],
  evaluations: ["Evaluations", "Their rows, answers and results."],
  base_models: ["Downloaded base models", "They are downloaded again when a job or a request needs them."],
};

const of = (kind) => (kind === "base_models" ? "Of models that nothing needs now" : `Of ${["exports", "evaluations"].includes(kind) ? kind : "jobs"} that have ended`);

/** What grows for ever, and can be deleted of all that has ended. */
function Stored() {
  const { value, error, reload } = useLoaded(() => get("/storage"), [], 30_000);
  const [doomed, setDoomed] = useState(null);
  const [days, setDays] = useState("30");
  const open = (one) => (setDays("30"), setDoomed(one));
  return html`<${Card} title="Storage that grows">
    <${Problem} error=${error} />${!value && !error && html`<${Loading} />`}
    <ul class="list stored">${value?.data.map((one) => html`<li key=${one.kind} class="row apart">
      <div><strong>${STORED[one.kind][0]}</strong><div class="small muted numbers">${`${amount(one.count, one.size_bytes, one.kind)}; ${one.keep_days ? `deleted after ${plural(one.keep_days, "day")}` : "kept for ever"}`}</div></div>
      <button type="button" class="small danger" disabled=${!one.deletable_count} aria-label=${`Delete ${STORED[one.kind][0]}`} onClick=${() => open(one)}>Delete…</button>
    </li>`)}</ul>
    ${doomed && html`<${Confirm} title=${`Delete ${STORED[doomed.kind][0]}?`} label="Delete for good" onClose=${() => setDoomed(null)}
      onConfirm=${async () => {
        const answer = await (await send(`/storage/${doomed.kind}?older_than_days=${Number(days) || 0}`, { method: "DELETE" })).json();
        tell(answer.deleted ? `Deleted: ${amount(answer.deleted, answer.size_bytes, doomed.kind)}.` : "Nothing was so old.", "good");
        await reload();
      }}>
      <p>${`${of(doomed.kind)}: ${amount(doomed.deletable_count, doomed.deletable_bytes, doomed.kind)} in all. ${STORED[doomed.kind][1]}`}</p>
      <${Field} id="older-than" label=${doomed.kind === "base_models" ? "Only what was not used for so many days" : "Only what ended more than so many days ago"} help=${doomed.kind === "base_models" ? "0: all of them." : "0: all that has ended."}><input id="older-than" type="number" min="0" aria-describedby="older-than-help" value=${days} onInput=${({ target }) => setDays(target.value)} /><//>
    <//>`}
  <//>`;
}

function amount(found, size, kind) {
  const things = plural(found, { events: "event", exports: "export", evaluations: "evaluation", base_models: "model" }[kind] ?? "job");
  return size == null || kind === "events" ? things : `${bytes(size)}, ${things}`;
}

/** Folders on the same disk are shown once. */
function gather(disks) {
  const found = new Map();
  for (const disk of disks) {
    const same = found.get(disk.total_bytes);
    if (same) found.set(disk.total_bytes, { ...same, folder: `${same.folder} and ${disk.folder}`, path: `${same.path}\n${disk.path}` });
    else found.set(disk.total_bytes, disk);
  }
  return [...found.values()];
}

const Disk = ({ disk }) => html`<div><${Use} label=${`Folder of ${disk.folder}`} used=${disk.total_bytes - disk.free_bytes} total=${disk.total_bytes} /><p class="small muted mono wrap">${disk.path}</p></div>`;

const Use = ({ label, used, total }) => html`<div class="stack tight">
  <div class="row apart small"><span>${label}</span><span class="muted numbers">${bytes(used)} of ${bytes(total)}, ${percent(used / total)}</span></div>
  <div class="meter" role="img" aria-label=${`${label}: ${bytes(used)} of ${bytes(total)} used`}><span class=${used / total > 0.9 ? "fill-2" : "fill-1"} style=${{ width: `${(used / total) * 100}%` }}></span></div>
</div>`;
