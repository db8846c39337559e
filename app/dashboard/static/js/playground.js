// One prompt for several models, in columns, with their answers as they are generated.

import { useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { get, getAll } from "./api.js";
import { ask, EMPTY } from "./answering.js";
import { Answer } from "./playground_answer.js";
import { Card, Field, html, Loading, Page, Problem, Tabs, useLoaded } from "./ui.js";

const MEMORY = "tunesmith.playground";
const MAX_COLUMNS = 4;
const SAMPLING = [
  ["max_new_tokens", "Max new tokens", 128, { min: 1, max: 32768, step: 1 }],
  ["temperature", "Temperature", 0.7, { min: 0, max: 2, step: 0.1 }],
  ["top_p", "Top p", 1, { min: 0.01, max: 1, step: 0.01 }],
  ["top_k", "Top k", 0, { min: 0, step: 1 }],
  ["min_p", "Min p", 0, { min: 0, max: 1, step: 0.01 }],
  ["repetition_penalty", "Repetition penalty", 1, { min: 0.01, max: 10, step: 0.05 }],
  ["seed", "Seed", "", { min: 0, step: 1, placeholder: "any" }],
];

export default function Playground({ query }) {
  const { value, error } = useLoaded(readTargets, []);
  if (!value) return html`<${Page} title="Playground">${error ? html`<${Problem} error=${error} />` : html`<${Loading} />`}<//>`;
  return html`<${Bench} ...${value} wanted=${query.get("adapter")} question=${query.get("ask")} />`;
}

async function readTargets() {
  const [models, adapters, aliases] = await Promise.all([get("/models"), getAll("/adapters"), getAll("/aliases")]);
  return { models: models.data, adapters, aliases };
}

/** The first columns: an adapter and its base model. */
function chooseColumns(models, adapters, wanted) {
  const adapter = adapters.find(({ id, name }) => id === wanted || name === wanted) ?? adapters[0];
  if (adapter) return [`base:${adapter.base_model}`, `adapter:${adapter.id}`];
  const first = models.find(({ loaded }) => loaded) ?? models[0];
  return [first ? `base:${first.name}` : "", ""];
}

const START = { mode: "chat", system: "", prompt: "", stop: "", ...Object.fromEntries(SAMPLING.map(([name, , value]) => [name, value])) };

function recall() {
  try {
    return { ...START, ...JSON.parse(sessionStorage.getItem(MEMORY)) };
  } catch {
    return START;
  }
}

function Bench({ models, adapters, aliases, wanted, question }) {
  const [columns, setColumns] = useState(() => chooseColumns(models, adapters, wanted));
  const [form, setForm] = useState(() => (question ? { ...START, prompt: question, temperature: 0 } : recall()));
  const [answers, setAnswers] = useState({});
  const running = useRef(new Set());
  const set = (name) => ({ target }) => setForm({ ...form, [name]: target.value });
  useEffect(() => sessionStorage.setItem(MEMORY, JSON.stringify(form)), [form]);
  const stop = () => {
    for (const work of running.current) work.abort();
  };
  useEffect(() => stop, []);
  const quantizations = findQuantizations(columns, adapters);
  const isBusy = Object.values(answers).some(({ isBusy }) => isBusy);
  useEffect(() => {
    if (question) run();
  }, []);
  const run = (event) => {
    event?.preventDefault();
    stop();
    setAnswers({});
    columns.forEach((target, column) => {
      if (!target) return;
      const work = new AbortController();
      running.current.add(work);
      const show = (answer) => work.signal.aborted && answer.isBusy ? null : setAnswers((before) => ({ ...before, [column]: answer }));
      ask(makeBody(target, form, quantizations), work.signal, show).finally(() => running.current.delete(work));
    });
  };
  const submitKeys = (event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && form.prompt && run(event);
  const change = (column, target) => setColumns(columns.map((old, index) => (index === column ? target : old)));
  return html`<${Page} title="Playground">
    <form class="stack" onSubmit=${run} onKeyDown=${submitKeys}>
      <div class="columns">
        <${Card}><div class="stack">
          <div><${Tabs} label="Kind of prompt" value=${form.mode} options=${[["chat", "Chat"], ["text", "Plain text"]]} onChange=${(mode) => setForm({ ...form, mode })} /></div>
          ${form.mode === "chat" && html`<${Field} id="system" label="System message"><input id="system" value=${form.system} placeholder="None" onInput=${set("system")} /><//>`}
          <${Field} id="prompt" label=${form.mode === "chat" ? "Message" : "Text to continue"}>
            <textarea id="prompt" rows="5" required value=${form.prompt} onInput=${set("prompt")}></textarea>
          <//>
          <div class="row">
            <button class="primary" type="submit">Ask ${columns.filter(Boolean).length > 1 ? "all" : ""}</button>
            ${isBusy && html`<button type="button" onClick=${stop}>Stop</button>`}
            <span class="small muted">Ctrl and Enter, too</span>
          </div>
        </div><//>
        <section class="card"><details open=${matchMedia("(min-width: 901px)").matches}><summary>Sampling</summary><div class="fields narrow">
          ${SAMPLING.map(([name, label, , rest]) => html`<${Field} key=${name} id=${name} label=${label}><input id=${name} type="number" ...${rest} step="any" required=${name !== "seed"} value=${form[name]} onInput=${set(name)} /><//>`)}
          <${Field} id="stop" label="Stop at" help="One text a line."><textarea id="stop" rows="1" aria-describedby="stop-help" value=${form.stop} onInput=${set("stop")}></textarea><//>
        </div></details></section>
      </div>
      <div class="answers">
        ${columns.map((target, column) => html`<${Answer} key=${column} number=${column + 1} target=${target} models=${models} adapters=${adapters} aliases=${aliases}
          answer=${answers[column] ?? EMPTY} body=${() => makeBody(target, form, quantizations)} onTarget=${(chosen) => change(column, chosen)}
          onRemove=${columns.length > 1 ? () => (setColumns(columns.filter((_, index) => index !== column)), setAnswers({})) : null} />`)}
      </div>
      ${columns.length < MAX_COLUMNS && html`<div><button type="button" onClick=${() => setColumns([...columns, ""])}>Add a column</button></div>`}
    </form>
  <//>`;
}

/** By base model: the quantization of an adapter on it in another column, so that both are asked of the same weights. */
function findQuantizations(columns, adapters) {
  const shown = adapters.filter(({ id, quantization }) => columns.includes(`adapter:${id}`) && !isDefault(quantization));
  return Object.fromEntries(shown.map(({ base_model, quantization }) => [base_model, quantization]));
}

const isDefault = ({ load_in_4bit, bnb_4bit_quant_type, bnb_4bit_compute_dtype, bnb_4bit_use_double_quant }) =>
  load_in_4bit && bnb_4bit_quant_type === "nf4" && bnb_4bit_compute_dtype === "auto" && !bnb_4bit_use_double_quant;

/** The body of POST /generate. What stands at its default is left out. */
function makeBody(target, form, quantizations) {
  const [kind, ...rest] = target.split(":");
  const name = rest.join(":");
  const body = { [{ adapter: "adapter", alias: "model" }[kind] ?? "base_model"]: name };
  if (kind === "base" && quantizations[name]) body.quantization = quantizations[name];
  if (form.mode === "text") body.prompt = form.prompt;
  else body.messages = [...(form.system ? [{ role: "system", content: form.system }] : []), { role: "user", content: form.prompt }];
  for (const [field, , fallback] of SAMPLING) {
    const value = form[field];
    const isNeeded = field === "max_new_tokens" || field === "temperature";
    if (value !== "" && (isNeeded || Number(value) !== fallback)) body[field] = Number(value);
  }
  const stop = form.stop.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  return { ...body, stream: true };
}
