// The curves of a job, smoothed if wanted, and of other jobs to compare it with.

import { useEffect, useMemo, useState } from "../vendor/htm-preact.js";
import { get, mayPass } from "./api.js";
import { Chart, Curve } from "./curves.js";
import { ago, bytes, count, figure, number } from "./format.js";
import { labelOf } from "./spec_form.js";
import { Card, Dialog, html, Loading, Problem, State, useLoaded } from "./ui.js";

const MAX_COMPARED = 4;
const OTHERS = ["--series-3", "--series-4", "--series-5", "--series-6"];
const percents = (value, extra = 0) => `${figure(value * 100, extra)}%`;
// Kind of point, figure or several in one chart, label, format. A figure that no point has is left out.
const FIGURES = [
  ["train", ["reward_chosen", "reward_rejected"], "Rewards"],
  ["train", "reward_margin", "Reward margin"],
  ["eval", "reward_margin", "Reward margin, evaluation"],
  ["train", "reward_accuracy", "Reward accuracy", percents],
  ["eval", "reward_accuracy", "Reward accuracy, evaluation", percents],
  ["train", ["log_prob_chosen", "log_prob_rejected"], "Log-probabilities of answers"],
  ["eval", ["reward_chosen", "reward_rejected"], "Rewards, evaluation"],
  ["eval", ["log_prob_chosen", "log_prob_rejected"], "Log-probabilities of answers, evaluation"],
  ["train", "token_accuracy", "Token accuracy", percents],
  ["eval", "token_accuracy", "Token accuracy, evaluation", percents],
  ["train", "learning_rate", "Learning rate"],
  ["train", "grad_norm", "Gradient norm"],
  ["train", "tokens_per_second", "Tokens a second", count],
  ["train", "memory_bytes", "Peak memory", bytes],
  ["train", "memory_used_bytes", "Memory in use", bytes],
  ["train", "gpu_utilization_percent", "GPU use", (value, extra = 0) => `${figure(value, extra)}%`],
];
// What else is in a point and is no curve of its own.
const NO_FIGURE = new Set(["step", "total_steps", "epoch", "loss", "eta_seconds", "tokens", "at", "kind"]);

export function JobCharts({ job, curve, version, compared }) {
  const [isLog, setLog] = useState(false);
  const [weight, setWeight] = useState(0);
  const others = useCompared(compared.slice(0, MAX_COMPARED));
  const lines = useMemo(() => lossLines(curve, others, weight), [curve, version, others, weight]);
  const figures = useMemo(() => [...FIGURES, ...findOtherFigures(curve)], [curve, version]);
  const small = useMemo(() => figures.map(([kind, name, label]) => figureLines(curve, others, kind, name, label, weight)), [curve, version, others, weight]);
  const isEmpty = curve.train.size === 0;
  const controls = html`
    <label class="row small"><span>Smoothing</span><input class="short" type="range" min="0" max="0.98" step="0.02" value=${weight} aria-valuetext=${weight ? number(weight, 2) : "none"} onInput=${({ target }) => setWeight(Number(target.value))} /></label>
    <label class="check small"><input type="checkbox" checked=${isLog} onChange=${() => setLog(!isLog)} /> Logarithmic</label>
    <${Compare} job=${job} compared=${compared} />`;
  return html`
    <${Card} title="Loss" actions=${controls}>
      ${isEmpty && !others.length
        ? html`<p class="muted">The first loss comes with the first step that is logged.</p>`
        : html`<${Chart} title="Loss by optimizer step" lines=${lines} height=${300} isLog=${isLog} />`}
    <//>
    <div class="grid four">
      ${figures.map(([kind, name, label, format], index) => small[index].length > 0 && html`<${Card} key=${`${kind}.${label}`} title=${label}><${Chart} title=${label} lines=${small[index]} height=${150} format=${format} /><//>`)}
    </div>`;
}

/** Figures of the points that are not listed above. */
function findOtherFigures(curve) {
  const known = new Set(FIGURES.flatMap(([kind, names]) => [names].flat().map((name) => `${kind}.${name}`)));
  return ["train", "eval"].flatMap((kind) => {
    const points = [...curve[kind].values()];
    const names = new Set(points.flatMap((point) => Object.keys(point).filter((name) => typeof point[name] === "number")));
    const others = [...names].filter((name) => !NO_FIGURE.has(name) && !known.has(`${kind}.${name}`));
    return others.map((name) => [kind, name, kind === "eval" ? `${labelOf(name)}, evaluation` : labelOf(name)]);
  });
}

function lossLines(curve, others, weight) {
  const lines = smoothed({ label: "training", colour: "--series-1", data: curve.series("train", "loss") }, weight);
  if (curve.eval.size) lines.push({ label: "evaluation", colour: "--series-2", data: curve.series("eval", "loss") });
  others.forEach(({ name, curve: other }, index) => {
    lines.push(...smoothed({ label: name, colour: OTHERS[index], dash: [5, 3], data: other.series("train", "loss") }, weight));
    if (other.eval.size) lines.push({ label: `${name}, evaluation`, colour: OTHERS[index], dash: [1, 3], data: other.series("eval", "loss") });
  });
  return lines;
}

function figureLines(curve, others, kind, figure, label, weight) {
  const names = [figure].flat();
  const labelIn = (name) => (names.length > 1 ? labelOf(name) : label);
  const lines = names.map((name, index) => ({ label: labelIn(name), colour: `--series-${index + 1}`, data: curve.series(kind, name) }));
  others.forEach(({ name: job, curve: other }, index) => names.forEach((name, place) => {
    const label = names.length > 1 ? `${job}, ${labelOf(name)}` : job;
    lines.push({ label, colour: OTHERS[index], dash: place ? [1, 3] : [5, 3], data: other.series(kind, name) });
  }));
  const known = lines.filter(({ data: [, values] }) => values.some((value) => value != null));
  // Evaluations are few, and means already.
  return kind === "train" ? known.flatMap((line) => smoothed(line, weight)) : known;
}

/** The line, or where it is smoothed the line faintly and its running mean above it. */
function smoothed(line, weight) {
  if (!weight) return [line];
  const [steps, values] = line.data;
  return [{ ...line, label: `${line.label}, as logged`, isFaint: true }, { ...line, data: [steps, runningMean(values, weight)] }];
}

/** An exponential moving mean without the bias of its beginning, as TensorBoard draws it. */
export function runningMean(values, weight) {
  let mean = 0;
  let seen = 0;
  return values.map((value) => {
    if (value == null) return null;
    mean = mean * weight + value * (1 - weight);
    seen += 1;
    return mean / (1 - weight ** seen);
  });
}

/** Names and curves of other jobs; those that still run come again. */
function useCompared(ids) {
  const [others, setOthers] = useState([]);
  const key = ids.join();
  useEffect(() => {
    let isLate = false;
    let timer = 0;
    const read = async () => {
      const found = await Promise.allSettled(ids.map(readCurve));
      if (isLate) return;
      const known = found.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
      setOthers(known);
      const isWaiting = found.some(({ reason }) => reason && mayPass(reason));
      if (isWaiting || known.some(({ isOver }) => !isOver)) timer = setTimeout(read, 4_000);
    };
    if (ids.length) read();
    else setOthers([]);
    return () => {
      isLate = true;
      clearTimeout(timer);
    };
  }, [key]);
  return others;
}

async function readCurve(id) {
  const path = `/jobs/${encodeURIComponent(id)}`;
  const [job, { data }] = await Promise.all([get(path), get(`${path}/metrics`)]);
  return { name: job.name === job.id ? job.id : `${job.name} (${job.id.slice(-4)})`, curve: Curve.from(data), isOver: Boolean(job.finished_at) };
}

/** Adds other jobs' curves, or takes them away; the address says which. */
function Compare({ job, compared }) {
  const [isOpen, setOpen] = useState(false);
  const show = (ids) => {
    const query = ids.map((id) => `compare=${encodeURIComponent(id)}`).join("&");
    location.hash = `#/job/${job.id}${query && `?${query}`}`;
  };
  return html`<button type="button" class="small" onClick=${() => setOpen(true)}>Compare with…</button>
    ${compared.length > 0 && html`<button type="button" class="small plain" onClick=${() => show([])}>Compare with none</button>`}
    ${isOpen && html`<${Choice} job=${job} compared=${compared} onChange=${show} onClose=${() => setOpen(false)} />`}`;
}

/** Any job that has a curve, found by its name. */
function Choice({ job, compared, onChange, onClose }) {
  const [chosen, setChosen] = useState(compared);
  const [search, setSearch] = useState("");
  const query = new URLSearchParams({ limit: 50, ...(search.trim() && { search: search.trim() }) });
  const { value, error } = useLoaded((signal) => get(`/jobs?${query}`, { signal }), [search], 0, search ? 200 : 0);
  const others = (value?.data ?? []).filter(({ id, progress }) => id !== job.id && progress.step > 0);
  const toggle = (id) => {
    const next = chosen.includes(id) ? chosen.filter((other) => other !== id) : [...chosen, id].slice(-MAX_COMPARED);
    setChosen(next);
    onChange(next);
  };
  return html`<${Dialog} title=${`Compare ${job.name} with`} onClose=${onClose}>
    <input type="search" placeholder="Search names and base models" aria-label="Search jobs to compare with" value=${search} onInput=${({ target }) => setSearch(target.value)} />
    <${Problem} error=${error} />
    ${!value && !error && html`<${Loading} />`}
    ${value && others.length === 0 && html`<p class="muted">No other job with a curve matches.</p>`}
    <ul class="list choices">${others.map(({ id, name, state, created_at: at }) => html`<li key=${id}><label class="check">
      <input type="checkbox" checked=${chosen.includes(id)} onChange=${() => toggle(id)} />
      <span class="wrap">${name}</span> <span class="small muted">${id.slice(-4)}, ${ago(at)}</span> <${State} state=${state} />
    </label></li>`)}</ul>
    <p class="small muted">Up to ${MAX_COMPARED}; one more replaces the first. Older ones are found by their name.</p>
    <div class="row"><button type="button" class="primary" onClick=${onClose}>Done</button></div>
  <//>`;
}
