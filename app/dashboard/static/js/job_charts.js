// The curves of a job, and of other jobs to compare it with.

import { useEffect, useMemo, useState } from "../vendor/htm-preact.js";
import { get } from "./api.js";
import { Chart, Curve } from "./curves.js";
import { bytes, count } from "./format.js";
import { Card, html, useLoaded } from "./ui.js";

const MAX_COMPARED = 4;
const OTHERS = ["--series-3", "--series-4", "--series-5", "--series-6"];
const FIGURES = [
  ["learning_rate", "Learning rate"],
  ["grad_norm", "Gradient norm"],
  ["tokens_per_second", "Tokens a second", count],
  ["memory_bytes", "Peak memory", bytes],
];

export function JobCharts({ job, curve, version, compared }) {
  const [isLog, setLog] = useState(false);
  const others = useCompared(compared.slice(0, MAX_COMPARED));
  const lines = useMemo(() => lossLines(curve, others), [curve, version, others]);
  const small = useMemo(
    () => FIGURES.map(([figure, label]) => [{ label, colour: "--series-1", data: curve.series("train", figure) }]),
    [curve, version],
  );
  const isEmpty = curve.train.size === 0;
  const scale = html`<label class="check small"><input type="checkbox" checked=${isLog} onChange=${() => setLog(!isLog)} /> Logarithmic</label>`;
  return html`
    <${Card} title="Loss" actions=${html`${scale}<${Compare} job=${job} compared=${compared} />`}>
      ${isEmpty && !others.length
        ? html`<p class="muted">The first loss comes with the first step that is logged.</p>`
        : html`<${Chart} title="Loss by optimizer step" lines=${lines} height=${300} isLog=${isLog} />`}
    <//>
    ${!isEmpty && html`<div class="grid four">
      ${FIGURES.map(([figure, label, format], index) => small[index][0].data[0].length > 0 && html`<${Card} key=${figure} title=${label}><${Chart} title=${label} lines=${small[index]} height=${150} format=${format} /><//>`)}
    </div>`}`;
}

function lossLines(curve, others) {
  const lines = [{ label: "training", colour: "--series-1", data: curve.series("train", "loss") }];
  if (curve.eval.size) lines.push({ label: "evaluation", colour: "--series-2", data: curve.series("eval", "loss") });
  others.forEach(({ name, curve: other }, index) => {
    lines.push({ label: name, colour: OTHERS[index], dash: [5, 3], data: other.series("train", "loss") });
    if (other.eval.size) lines.push({ label: `${name}, evaluation`, colour: OTHERS[index], dash: [1, 3], data: other.series("eval", "loss") });
  });
  return lines;
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
      if (known.some(({ isOver }) => !isOver)) timer = setTimeout(read, 4_000);
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

/** Adds another job's curve, or takes one away; the address keeps which. */
function Compare({ job, compared }) {
  const { value } = useLoaded(() => get("/jobs?limit=100"), [job.id]);
  const others = (value?.data ?? []).filter(({ id, progress }) => id !== job.id && progress.step > 0);
  if (!others.length) return null;
  const show = (ids) => {
    const query = ids.map((id) => `compare=${encodeURIComponent(id)}`).join("&");
    location.hash = `#/job/${job.id}${query && `?${query}`}`;
  };
  const toggle = ({ target }) => {
    const id = target.value;
    target.value = "";
    show(compared.includes(id) ? compared.filter((other) => other !== id) : [...compared, id].slice(-MAX_COMPARED));
  };
  return html`<label class="row small"><span class="visually-hidden">Compare with another job</span>
    <select onChange=${toggle} value="">
      <option value="">Compare with…</option>
      ${others.map(({ id, name }) => html`<option key=${id} value=${id}>${compared.includes(id) ? "✓ " : ""}${name} (${id.slice(-4)})</option>`)}
    </select></label>
    ${compared.length > 0 && html`<button type="button" class="small plain" onClick=${() => show([])}>Compare with none</button>`}`;
}
