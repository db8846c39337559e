// The parts that pages are made of. Text goes into the document as text alone.

import { mayPass } from "./api.js";
import { inWords } from "./words.js";
import { html, useCallback, useEffect, useRef, useState } from "../vendor/htm-preact.js";

export { html };

// How soon a load that failed for a while is tried again.
const AGAIN = 3_000;

/**
 * The result of `load(signal)` for these keys, `after` milliseconds after they have changed, and again `every` so
 * many while the page is visible. An error that may pass is tried again in any case; errors keep the last value.
 * `isStale` says that the value is that of other keys than these.
 */
export function useLoaded(load, keys = [], every = 0, after = 0) {
  const mark = JSON.stringify(keys);
  const [found, setFound] = useState({ value: null, valueMark: null, error: null, mark: null });
  const turn = useRef(0);
  const reload = useCallback(async (signal) => {
    const own = ++turn.current;
    try {
      const value = await load(signal);
      if (own === turn.current) setFound({ value, valueMark: mark, error: null, mark });
    } catch (error) {
      if (signal?.aborted) return null;
      if (own === turn.current) setFound((before) => ({ ...before, error, mark }));
      return error;
    }
    return null;
  }, keys);
  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    const again = async () => {
      const error = document.hidden ? null : await reload(stop.signal);
      const wait = every || (document.hidden || (error && mayPass(error)) ? AGAIN : 0);
      if (wait && !stop.signal.aborted) timer = setTimeout(again, wait);
    };
    if (after) timer = setTimeout(again, after);
    else again();
    return () => {
      stop.abort();
      turn.current += 1;
      clearTimeout(timer);
    };
  }, [reload, every]);
  return { ...found, isLoading: found.mark !== mark, isStale: found.valueMark !== mark, reload: useCallback(() => reload(), [reload]) };
}

export function Page({ title, crumb, actions, children }) {
  const heading = useRef(null);
  useEffect(() => heading.current?.focus({ preventScroll: true }), []);
  useEffect(() => {
    document.title = `${title} · Tunesmith`;
  }, [title]);
  return html`
    <div class="page-head">
      <div>${crumb && html`<p class="crumb muted">${crumb}</p>`}<h1 tabindex="-1" ref=${heading}>${title}</h1></div>
      <div class="row">${actions}</div>
    </div>
    ${children}`;
}

export const Card = ({ title, actions, children, ...rest }) => html`
  <section class="card" ...${rest}>
    ${title && html`<header><h2>${title}</h2><div class="row">${actions}</div></header>`}
    ${children}
  </section>`;

export const State = ({ state, phase }) =>
  html`<span class=${`state ${state}`}>${phase ? `${state}: ${phase}` : state.replaceAll("_", " ")}</span>`;

export function Problem({ error, children }) {
  if (!error) return null;
  return html`<div class="note bad" role="alert">
    <strong>${inWords(error.message)}</strong>${error.hint && html` <span>${inWords(error.hint)}</span>`} ${children}
  </div>`;
}

export const Empty = ({ title, children }) => html`<div class="card empty"><h2>${title}</h2>${children}</div>`;

export const Loading = () => html`<p class="muted" aria-busy="true">Loading…</p>`;

export const Facts = ({ facts }) => html`<dl class="facts">
  ${facts.filter(Boolean).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value ?? "–"}</dd></div>`)}
</dl>`;

/** A button that is busy while its action runs, and shows the action's error. */
export function Action({ onClick, children, ...rest }) {
  const [isBusy, setBusy] = useState(false);
  const act = async () => {
    setBusy(true);
    try {
      await onClick();
    } catch (error) {
      tell(inWords(`${error.message} ${error.hint ?? ""}`), "bad");
    } finally {
      setBusy(false);
    }
  };
  return html`<button type="button" ...${rest} disabled=${isBusy || rest.disabled} aria-busy=${isBusy} onClick=${act}>${children}</button>`;
}

/** The browser's own modal dialog: it holds the focus, and Escape closes it. */
export function Dialog({ title, isWide, onClose, children }) {
  const dialog = useRef(null);
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  return html`<dialog ref=${dialog} class=${isWide ? "wide" : undefined} aria-labelledby="dialog-title" onClose=${onClose}>
    <div class="stack"><h2 id="dialog-title">${title}</h2>${children}</div>
  </dialog>`;
}

/** A dialog that asks for confirmation before something is deleted. */
export const Confirm = ({ title, children, label, onConfirm, onClose }) => html`
  <${Dialog} title=${title} onClose=${onClose}>
    ${children}
    <div class="row">
      <button type="button" onClick=${onClose}>Keep it</button>
      <${Action} class="primary danger" onClick=${async () => {
        try {
          await onConfirm();
        } finally {
          onClose();
        }
      }}>${label}<//>
    </div>
  <//>`;

export function Copy({ text, children }) {
  return html`<${Action} class="small" onClick=${async () => {
    await copy(typeof text === "function" ? text() : text);
    tell("Copied.", "good");
  }}>${children}<//>`;
}

async function copy(text) {
  // A page that came over plain HTTP from another machine has no clipboard of its own.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** A short message in the corner, announced to screen readers. */
export function tell(message, kind = "") {
  dispatchEvent(new CustomEvent("tunesmith:tell", { detail: { message, kind } }));
}

export function Toasts() {
  const [toasts, setToasts] = useState([]);
  useEffect(() => {
    let last = 0;
    const show = ({ detail }) => {
      const toast = { id: ++last, ...detail };
      setToasts((before) => [...before.slice(-3), toast]);
      setTimeout(() => setToasts((before) => before.filter(({ id }) => id !== toast.id)), 6_000);
    };
    addEventListener("tunesmith:tell", show);
    return () => removeEventListener("tunesmith:tell", show);
  }, []);
  return html`<div class="toasts" role="status" aria-live="polite">
    ${toasts.map(({ id, message, kind }) => html`<div key=${id} class=${`note ${kind}`}>${message}</div>`)}
  </div>`;
}

/** A label, its field, what it is for, and what is wrong with it. */
export function Field({ label, help, wrong, id, isChanged, children }) {
  return html`<div class="field">
    <label for=${id} class=${isChanged ? "changed" : ""}>${label}</label>
    ${children}
    ${wrong && html`<p class="wrong" id=${`${id}-wrong`}>${wrong}</p>`}
    ${help && html`<p class="help" id=${`${id}-help`}>${help}</p>`}
  </div>`;
}

export const Tabs = ({ label, value, options, onChange }) => html`<div class="tabs" role="group" aria-label=${label}>
  ${options.map(([key, name]) => html`<button type="button" key=${key} aria-pressed=${value === key} onClick=${() => onChange(key)}>${name}</button>`)}
</div>`;
