// Streams answers of POST /generate: text, thoughts and calls of functions; and says what an answer waits for.

import { useEffect, useState } from "../vendor/htm-preact.js";
import { ApiError, get, send } from "./api.js";
import { number } from "./format.js";
import { html } from "./ui.js";
import { readEvents } from "./stream.js";

export const EMPTY = { text: "", reasoning: "", calls: [], isBusy: false, end: null, error: null };

/** Stream an answer; `show` is called whenever it has grown. Returns it as it ended. */
export async function ask(body, signal, show) {
  let answer = { ...EMPTY, isBusy: true, askedAt: Date.now() };
  const grow = (change) => show((answer = { ...answer, ...change }));
  grow({});
  try {
    const response = await send("/generate", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true }),
      signal,
    });
    for await (const { event, data } of readEvents(response)) {
      const said = JSON.parse(data);
      if (event === "error") throw new ApiError(200, said.error);
      if (event === "done") return grow({ isBusy: false, end: said }) ?? answer;
      if (event === "delta") grow({ text: answer.text + said.text });
      if (event === "reasoning") grow({ reasoning: answer.reasoning + said.text });
      if (event === "tool_call") grow({ calls: addCall(answer.calls, said) });
    }
    throw new ApiError(200, { message: "The answer broke off.", hint: "Ask again." });
  } catch (error) {
    grow({ isBusy: false, error: signal.aborted ? null : error, isStopped: signal.aborted });
  }
  return answer;
}

/** The calls with one more part of one of them. */
function addCall(calls, { call, id, name, arguments: part = "", withdrawn }) {
  const others = calls.filter((one) => one.call !== call);
  if (withdrawn) return others;
  const known = calls.find((one) => one.call === call) ?? { call, id, name, arguments: "" };
  return [...others, { ...known, arguments: known.arguments + part }].sort((one, other) => one.call - other.call);
}

export const Calls = ({ calls }) => calls.map(({ call, name, arguments: given }) => html`<div key=${call} class="call">
  <span class="small muted">Calls a function</span> <code>${name}</code><pre class="code" tabindex="0">${pretty(given)}</pre>
</div>`);

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** What the model thought before its answer; open while it thinks. */
export const Thoughts = ({ text, isBusy }) => text && html`<details class="thoughts" open=${isBusy || undefined}>
  <summary class="small muted">${isBusy ? "Thinking…" : "Thoughts"}</summary><div class="small muted wrap">${text}</div>
</details>`;

/** What an answer that has not begun waits for, and how long already. */
export function Waiting({ baseModel, since }) {
  const [now, setNow] = useState(Date.now());
  const [engines, setEngines] = useState([]);
  useEffect(() => {
    const read = () => get("/status").then(({ workers }) => setEngines(workers.map(({ engine }) => engine).filter(Boolean)), () => {});
    const first = setTimeout(read, 500);
    const clock = setInterval(() => setNow(Date.now()), 500);
    const again = setInterval(read, 2_000);
    return () => {
      clearTimeout(first);
      clearInterval(clock);
      clearInterval(again);
    };
  }, []);
  return html`<span class="muted numbers">${reason(engines, baseModel)} ${number(Math.max(0, Math.round((now - since) / 1000)))} s</span>`;
}

function reason(engines, baseModel) {
  if (engines.some(({ loading }) => loading?.base_model.name === baseModel)) return "Loading the base model…";
  const loading = engines.map((engine) => engine.loading).find(Boolean);
  if (loading) return `Waiting while ${loading.base_model.name} is loaded…`;
  if (engines.length && engines.every(({ paused_by: job }) => job)) return "A job has the GPU; serving waits…";
  return "Waiting for the first token…";
}
