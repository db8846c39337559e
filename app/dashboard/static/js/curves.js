// A job's curves, made from its events, and how they are drawn. A resumed job repeats steps: the last value counts.

import { useEffect, useLayoutEffect, useRef } from "../vendor/htm-preact.js";
import uPlot from "../vendor/uplot.js";
import { figure } from "./format.js";
import { html } from "./ui.js";

// So few points are shown as points, too.
const FEW = 40;

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = "/dashboard/vendor/uplot.css";
document.head.append(style);

/** Points by step of both kinds. */
export class Curve {
  train = new Map();
  eval = new Map();

  /** Add an event. Returns whether it has a point. */
  add({ type, data }) {
    const kind = { metrics: "train", eval: "eval" }[type];
    if (kind) this[kind].set(data.step, data);
    return Boolean(kind);
  }

  static from(points) {
    const curve = new Curve();
    for (const point of points) curve[point.kind].set(point.step, point);
    return curve;
  }

  /** Steps and values of one figure, by step. */
  series(kind, figure) {
    const points = [...this[kind].values()].sort((one, other) => one.step - other.step);
    const known = points.filter((point) => point[figure] !== undefined);
    return [known.map(({ step }) => step), known.map((point) => point[figure] ?? null)];
  }
}

/**
 * Lines over optimizer steps: `lines` are `{ label, colour, data: [steps, values], dash?, isFaint? }`. Drawn anew when
 * their number changes, and fed with data otherwise.
 */
export function Chart({ title, lines, height = 240, isLog = false, format = figure, syncKey = "steps" }) {
  const place = useRef(null);
  const plot = useRef(null);
  const shape = JSON.stringify([lines.map(({ label, colour, dash, isFaint }) => [label, colour, dash, isFaint]), isLog, height]);
  useLayoutEffect(() => {
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options({ lines, height, isLog, format, syncKey, width: place.current.clientWidth }), join(lines, isLog), place.current);
    };
    draw();
    const sized = new ResizeObserver(() => plot.current.setSize({ width: place.current.clientWidth, height }));
    sized.observe(place.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", draw);
    addEventListener("tunesmith:theme", draw);
    return () => {
      sized.disconnect();
      scheme.removeEventListener("change", draw);
      removeEventListener("tunesmith:theme", draw);
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(join(lines, isLog)), [lines]);
  return html`<figure class="chart" role="img" aria-label=${describe(title, lines, format)}><div ref=${place}></div></figure>`;
}

function join(lines, isLog) {
  const tables = lines.map(({ data: [steps, values] }) => [steps, isLog ? values.map((value) => (value > 0 ? value : null)) : values]);
  return tables.length ? uPlot.join(tables) : [[]];
}

function options({ lines, height, isLog, format, syncKey, width }) {
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = { stroke: colour("--muted"), grid, ticks: { ...grid, size: 4 }, font: "12px system-ui, sans-serif" };
  return {
    width,
    height,
    scales: { x: { time: false, range: (_, low, high) => [low ?? 0, high > low ? high : (low ?? 0) + 1] }, y: { distr: isLog ? 3 : 1 } },
    axes: [
      { ...axis, size: 32, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5] },
      { ...axis, size: 62, values: (_, ticks) => labels(ticks, format) },
    ],
    cursor: { sync: { key: syncKey }, points: { size: 6 } },
    legend: { live: true },
    series: [
      { label: "step", value: (plot, step) => step ?? plot.data[0]?.at(-1) ?? "–" },
      ...lines.map((line) => ({
        label: line.label,
        stroke: colour(line.colour),
        alpha: line.isFaint ? 0.3 : 1,
        width: line.isFaint ? 1.2 : 1.8,
        dash: line.dash,
        spanGaps: true,
        points: { show: (plot, series) => plot.data[series].filter((value) => value != null).length < FEW, size: 5, fill: colour(line.colour) },
        // The last point, unless the pointer is over one.
        value: (plot, value, series, index) => {
          const shown = index == null ? plot.data[series]?.findLast((one) => one != null) : value;
          return shown == null ? "–" : format(shown);
        },
      })),
    ],
  };
}

/** Labels of an axis with as many digits as it takes for no two to be equal. */
export function labels(ticks, format) {
  for (let extra = 0; extra <= 4; extra += 1) {
    const found = ticks.map((tick) => (tick == null ? "" : format(tick, extra)));
    const shown = found.filter(Boolean);
    if (new Set(shown).size === shown.length || extra === 4) return found;
  }
}

/** A canvas knows no custom properties. */
function colour(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function describe(title, lines, format) {
  const said = lines.map(({ label, data: [steps, values] }) => {
    const known = values.filter((value) => value != null);
    return known.length ? `${label}: ${known.length} points, from ${format(known[0])} to ${format(known.at(-1))} at step ${steps.at(-1)}` : `${label}: none yet`;
  });
  return `${title}. ${said.join(". ")}.`;
}
