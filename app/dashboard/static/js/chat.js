// A chat with one to four models: turns, regenerated and edited ones, conversations that stay in this browser.

import { useEffect, useLayoutEffect, useRef, useState } from "../vendor/htm-preact.js";
import { get, getAll } from "./api.js";
import { ask, Calls, EMPTY, Thoughts, Waiting } from "./answering.js";
import { makeChat, messagesOf, readChats, removeChat, storeChat, titleOf } from "./chats.js";
import { ago, count, number } from "./format.js";
import { Markdown } from "./markdown.js";
import { Card, Copy, Field, html, Loading, Page, Problem, useLoaded } from "./ui.js";

const MAX_MODELS = 4;
const SAMPLING = [
  ["max_new_tokens", "Max new tokens", 512, { min: 1, max: 32768 }],
  ["temperature", "Temperature", 0.7, { min: 0, max: 2 }],
  ["top_p", "Top p", 1, { min: 0.01, max: 1 }],
  ["top_k", "Top k", 0, { min: 0 }],
  ["repetition_penalty", "Repetition penalty", 1, { min: 0.01, max: 10 }],
  ["seed", "Seed", "", { min: 0, placeholder: "any" }],
];

export default function Chat({ query }) {
  const { value, error } = useLoaded(readTargets, []);
  if (!value) return html`<${Page} title="Chat">${error ? html`<${Problem} error=${error} />` : html`<${Loading} />`}<//>`;
  return html`<${Bench} ...${value} wanted=${query.get("adapter")} />`;
}

async function readTargets() {
  const [models, adapters, aliases] = await Promise.all([get("/models"), getAll("/adapters"), getAll("/aliases")]);
  return { models: models.data, adapters, aliases };
}

function chooseModel(models, adapters, wanted) {
  const adapter = adapters.find(({ id, name }) => id === wanted || name === wanted) ?? adapters[0];
  if (adapter) return `adapter:${adapter.id}`;
  const first = models.find(({ loaded }) => loaded) ?? models[0];
  return first ? `base:${first.name}` : "";
}

function Bench({ models, adapters, aliases, wanted }) {
  const [chats, setChats] = useState(readChats);
  const [chat, setChat] = useState(() => (wanted || !chats.length ? makeChat([chooseModel(models, adapters, wanted)]) : chats[0]));
  const current = useRef(chat);
  const running = useRef(new Set());
  const [isBusy, setBusy] = useState(false);
  const stop = () => running.current.forEach((work) => work.abort());
  useEffect(() => stop, []);
  useFollowedEnd(isBusy);
  const show = (next) => {
    current.current = next;
    setChat(next);
  };
  const open = (next) => {
    stop();
    show(next);
  };
  const change = (fields) => show({ ...current.current, ...fields });

  /** Ask the models at these places for their answer to a turn. */
  const answer = async (turn, places) => {
    setBusy(true);
    const { id } = current.current;
    await Promise.all(places.filter((place) => current.current.models[place]).map(async (place) => {
      const work = new AbortController();
      running.current.add(work);
      const put = (found) => {
        if (current.current.id !== id) return;
        const turns = current.current.turns.map((one, at) => (at === turn ? { ...one, answers: { ...one.answers, [place]: found } } : one));
        change({ turns });
      };
      await ask(makeBody(current.current, place, turn), work.signal, put);
      running.current.delete(work);
    }));
    setBusy(running.current.size > 0);
    if (current.current.id === id) setChats(storeChat(toStore(current.current)));
  };
  const all = () => current.current.models.map((_, place) => place);
  const say = (text) => {
    change({ turns: [...current.current.turns, { text, answers: {} }] });
    answer(current.current.turns.length - 1, all());
  };
  const edit = (turn, text) => {
    stop();
    change({ turns: [...current.current.turns.slice(0, turn), { text, answers: {} }] });
    answer(turn, all());
  };
  const regenerate = (turn, place) => {
    change({ turns: current.current.turns.slice(0, turn + 1) });
    answer(turn, [place]);
  };
  const startNew = () => open(makeChat(chat.models));
  const forget = (id) => {
    setChats(removeChat(id));
    if (id === chat.id) startNew();
  };
  return html`<${Page} title="Chat" actions=${html`<button type="button" onClick=${startNew}>New chat</button>`}>
    <div class="chat-columns">
      <${History} chats=${chats} current=${chat.id} onOpen=${open} onRemove=${forget} />
      <div class="stack">
        <${Settings} chat=${chat} models=${models} adapters=${adapters} aliases=${aliases} onChange=${change} />
        <div class="stack turns">
          ${chat.turns.map((turn, at) => html`<${Turn} key=${at} turn=${turn} chat=${chat} names=${nameOf(models, adapters)} isBusy=${isBusy} onEdit=${(text) => edit(at, text)} onAgain=${(place) => regenerate(at, place)} />`)}
        </div>
        <${Composer} isBusy=${isBusy} isReady=${chat.models.some(Boolean)} onSay=${say} onStop=${stop} />
      </div>
    </div>
  <//>`;
}

/** The page stays at its end while answers grow, unless a person has scrolled up. */
function useFollowedEnd(isGrowing) {
  const isAtEnd = useRef(true);
  useEffect(() => {
    const look = () => {
      isAtEnd.current = document.documentElement.scrollHeight - innerHeight - scrollY < 120;
    };
    addEventListener("scroll", look, { passive: true });
    return () => removeEventListener("scroll", look);
  }, []);
  useLayoutEffect(() => {
    if (isGrowing && isAtEnd.current) scrollTo(0, document.documentElement.scrollHeight);
  });
}

/** What is kept of a conversation: no answer that is under way. */
const toStore = (chat) => ({ ...chat, turns: chat.turns.map((turn) => ({ ...turn, answers: Object.fromEntries(Object.entries(turn.answers).map(([place, answer]) => [place, { ...answer, isBusy: false, error: answer.error && { message: answer.error.message, hint: answer.error.hint } }])) })) });

function nameOf(models, adapters) {
  return (target) => {
    const name = target.slice(target.indexOf(":") + 1);
    if (target.startsWith("base:")) return { name, baseModel: name };
    if (target.startsWith("alias:")) return { name };
    const adapter = adapters.find(({ id }) => id === name);
    return { name: adapter?.name ?? name, baseModel: adapter?.base_model };
  };
}

/** The body of POST /generate. What stands at its default is left out. */
function makeBody(chat, place, turn) {
  const target = chat.models[place];
  const name = target.slice(target.indexOf(":") + 1);
  // Of an alias with several models, one serves the whole chat.
  const asked = target.startsWith("alias:") ? { model: name, user: chat.id } : target.startsWith("base:") ? { base_model: name } : { adapter: name };
  const body = { ...asked, messages: messagesOf(chat, place, turn) };
  for (const [field, , fallback] of SAMPLING) {
    const value = chat.sampling?.[field] ?? fallback;
    const isNeeded = field === "max_new_tokens" || field === "temperature";
    if (value !== "" && (isNeeded || Number(value) !== fallback)) body[field] = Number(value);
  }
  return body;
}

const History = ({ chats, current, onOpen, onRemove }) => html`<details class="history" open=${matchMedia("(min-width: 1100px)").matches}>
  <summary class="small">${`Chats in this browser (${count(chats.length)})`}</summary>
  <ul class="list">${chats.map((chat) => html`<li key=${chat.id} class="row">
    <button type="button" class="plain small wrap" aria-current=${chat.id === current ? "true" : undefined} onClick=${() => onOpen(chat)} title=${ago(chat.at)}>${titleOf(chat)}</button>
    <button type="button" class="plain small" aria-label=${`Delete the chat ${titleOf(chat)}`} onClick=${() => onRemove(chat.id)}>×</button>
  </li>`)}</ul>
</details>`;

function Settings({ chat, models, adapters, aliases, onChange }) {
  const set = (place) => ({ target }) => onChange({ models: chat.models.map((model, at) => (at === place ? target.value : model)) });
  const drop = (place) => onChange({ models: chat.models.filter((_, at) => at !== place), turns: chat.turns.map((turn) => ({ ...turn, answers: shift(turn.answers, place) })) });
  const sample = (field) => ({ target }) => onChange({ sampling: { ...chat.sampling, [field]: target.value } });
  return html`<${Card}><div class="stack tight">
    <div class="row">
      ${chat.models.map((model, place) => html`<div key=${place} class="row model-choice">
        <select aria-label=${`Model ${place + 1}`} value=${model} onChange=${set(place)}>
          <option value="">Choose a model</option>
          ${aliases.length > 0 && html`<optgroup label="Aliases">${aliases.map(({ name }) => html`<option key=${name} value=${`alias:${name}`}>${name}</option>`)}</optgroup>`}
          <optgroup label="Adapters">${adapters.map(({ id, name }) => html`<option key=${id} value=${`adapter:${id}`}>${name}</option>`)}</optgroup>
          <optgroup label="Base models">${models.map(({ name }) => html`<option key=${name} value=${`base:${name}`}>${name}</option>`)}</optgroup>
        </select>
        ${chat.models.length > 1 && html`<button type="button" class="plain small" aria-label=${`Remove model ${place + 1}`} onClick=${() => drop(place)}>×</button>`}
      </div>`)}
      ${chat.models.length < MAX_MODELS && html`<button type="button" class="small" onClick=${() => onChange({ models: [...chat.models, ""] })}>Add a model</button>`}
    </div>
    <details><summary class="small">System prompt and sampling</summary><div class="stack">
      <${Field} id="chat-system" label="System prompt"><textarea id="chat-system" rows="2" value=${chat.system} onInput=${({ target }) => onChange({ system: target.value })}></textarea><//>
      <div class="fields narrow">${SAMPLING.map(([field, label, fallback, rest]) => html`<${Field} key=${field} id=${`chat-${field}`} label=${label}><input id=${`chat-${field}`} type="number" step="any" ...${rest} value=${chat.sampling?.[field] ?? fallback} onInput=${sample(field)} /><//>`)}</div>
    </div></details>
  </div><//>`;
}

/** The answers without those of one place; later ones move up. */
const shift = (answers, place) => Object.fromEntries(Object.entries(answers).filter(([at]) => Number(at) !== place).map(([at, answer]) => [Number(at) > place ? at - 1 : at, answer]));

function Turn({ turn, chat, names, isBusy, onEdit, onAgain }) {
  const [draft, setDraft] = useState(null);
  const save = (event) => {
    event.preventDefault();
    setDraft(null);
    onEdit(draft);
  };
  return html`<article class="stack tight">
    ${draft == null
      ? html`<div class="said"><div class="wrap">${turn.text}</div><button type="button" class="plain small" onClick=${() => setDraft(turn.text)}>Edit</button></div>`
      : html`<form class="stack tight" onSubmit=${save}><textarea aria-label="Edit the message" rows="3" value=${draft} onInput=${({ target }) => setDraft(target.value)}></textarea>
          <div class="row"><button type="submit" class="small primary" disabled=${!draft.trim()}>Ask again</button><button type="button" class="small" onClick=${() => setDraft(null)}>Leave it</button></div></form>`}
    <div class="answers">${chat.models.map((model, place) => model && html`<${Answer} key=${place} number=${place + 1} ...${names(model)} isAlone=${chat.models.length === 1} answer=${turn.answers[place] ?? EMPTY} isBusy=${isBusy} onAgain=${() => onAgain(place)} />`)}</div>
  </article>`;
}

function Answer({ number: place, name, baseModel, isAlone, answer, isBusy, onAgain }) {
  const { text, reasoning, calls, end, error, isStopped } = answer;
  const hasBegun = text || reasoning || calls.length > 0;
  return html`<section class="card reply" aria-label=${`Answer of model ${place}`} aria-busy=${answer.isBusy}>
    ${!isAlone && html`<h3 class="small wrap">${name}</h3>`}
    <${Thoughts} text=${reasoning} isBusy=${answer.isBusy && !text} />
    ${text && html`<${Markdown} text=${text} />`}
    <${Calls} calls=${calls} />
    ${answer.isBusy && !hasBegun && html`<${Waiting} baseModel=${baseModel} since=${answer.askedAt} />`}
    ${end && !hasBegun && html`<span class="muted">An empty answer.</span>`}
    <${Problem} error=${error} />
    ${!answer.isBusy && html`<div class="row small muted numbers">
      <span>${isStopped ? "Stopped." : end ? `${count(end.usage.completion_tokens)} tokens, ${number(end.timings.tokens_per_second, 3)} a second${end.finish_reason === "length" ? ", cut at max new tokens" : ""}` : ""}</span>
      <button type="button" class="plain small" disabled=${isBusy} onClick=${onAgain}>${hasBegun || error ? "Regenerate" : "Ask this model"}</button>
      ${text && html`<${Copy} text=${text}>Copy<//>`}
    </div>`}
  </section>`;
}

function Composer({ isBusy, isReady, onSay, onStop }) {
  const [text, setText] = useState("");
  const field = useRef(null);
  const submit = (event) => {
    event.preventDefault();
    if (!text.trim() || isBusy || !isReady) return;
    onSay(text);
    setText("");
    field.current.focus();
  };
  const keys = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && submit(event);
  return html`<form class="composer" onSubmit=${submit}>
    <textarea ref=${field} rows="2" aria-label="Message" placeholder="Ask something. Enter sends, Shift and Enter begin a line." value=${text} onInput=${({ target }) => setText(target.value)} onKeyDown=${keys}></textarea>
    ${isBusy ? html`<button type="button" onClick=${onStop}>Stop</button>` : html`<button type="submit" class="primary" disabled=${!text.trim() || !isReady}>Send</button>`}
  </form>`;
}
