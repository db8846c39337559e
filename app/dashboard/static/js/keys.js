// API keys on the page of the box: what each may do and take, making and revoking them, and what was used.

import { useState } from "../vendor/htm-preact.js";
import { get, keepKey, post, remove, storedKey } from "./api.js";
import { ago, count, moment } from "./format.js";
import { Card, Confirm, Copy, Field, html, Problem, tell, useLoaded } from "./ui.js";

const SCOPES = [
  ["read", "Read: see everything"],
  ["infer", "Infer: ask models"],
  ["train", "Train: datasets, jobs, adapters"],
  ["admin", "Admin: everything"],
];
const NEW = { name: "", scopes: ["infer"], requests_per_minute: "", queued_jobs: "", tokens_per_day: "", days: "" };
const DAYS = 7;

export function Keys() {
  const { value: caller } = useLoaded(() => get("/keys/self"), []);
  if (!caller) return null;
  return html`${caller.scopes.includes("admin") && html`<${List} />`}<${Usage} />`;
}

function List() {
  const { value, error, reload } = useLoaded(() => get("/keys"), [], 10_000);
  const [isNew, setNew] = useState(false);
  const [made, setMade] = useState(null);
  const [doomed, setDoomed] = useState(null);
  const keys = (value?.data ?? []).filter(({ revoked_at: revoked }) => !revoked);
  const actions = html`<button type="button" class="small" aria-expanded=${isNew} onClick=${() => (setNew(!isNew), setMade(null))}>New key</button>`;
  return html`<${Card} title="API keys" actions=${actions}><div class="stack tight">
    <${Problem} error=${error} />
    ${made && html`<div class="note good" role="status"><strong>${`The key ${made.name}, shown only now:`}</strong> <code class="wrap">${made.key}</code> <${Copy} text=${made.key}>Copy<//></div>`}
    ${isNew && html`<${KeyForm} isFirst=${keys.length === 0} onMade=${async (key) => (setNew(false), setMade(key), await reload())} />`}
    ${value && keys.length === 0 && html`<p class="muted small">No key: whoever reaches this API may do everything.</p>`}
    ${keys.length > 0 && html`<ul class="list">${keys.map((key) => html`<li key=${key.id} class="row apart">
      <span><strong class="wrap">${key.name}</strong> <span class="small muted">${describe(key)}</span></span>
      <button type="button" class="small danger" aria-label=${`Revoke ${key.name}`} onClick=${() => setDoomed(key)}>Revoke</button>
    </li>`)}</ul>`}
    ${doomed && html`<${Confirm} title=${`Revoke the key ${doomed.name}?`} label="Revoke it for good" onClose=${() => setDoomed(null)}
      onConfirm=${async () => {
        await remove(`/keys/${doomed.id}`);
        tell(`${doomed.name} is revoked.`, "good");
        await reload();
      }}><p>Requests with it are refused from then on.</p><//>`}
  </div><//>`;
}

function describe({ scopes, limits, expires_at: end, created_at: made }) {
  const named = [
    [limits.requests_per_minute, "requests a minute"],
    [limits.queued_jobs, "waiting jobs"],
    [limits.tokens_per_day, "tokens a day"],
  ];
  const taken = named.filter(([limit]) => limit != null).map(([limit, what]) => `${count(limit)} ${what}`);
  return [scopes.join(", "), ...taken, end ? `ends ${moment(end)}` : `made ${ago(made)}`].join(" · ");
}

function KeyForm({ isFirst, onMade }) {
  const [form, setForm] = useState(isFirst ? { ...NEW, scopes: ["admin"] } : NEW);
  const [failure, setFailure] = useState(null);
  const field = (name, label, rest) => html`<${Field} id=${`key-${name}`} label=${label}><input id=${`key-${name}`} value=${form[name]} onInput=${({ target }) => setForm({ ...form, [name]: target.value })} ...${rest} /><//>`;
  const toggle = (scope) => setForm({ ...form, scopes: form.scopes.includes(scope) ? form.scopes.filter((one) => one !== scope) : [...form.scopes, scope] });
  const limit = (value) => (value === "" ? null : Number(value));
  const save = async (event) => {
    event.preventDefault();
    setFailure(null);
    const { name, scopes, days, ...limits } = form;
    const own = Object.fromEntries(Object.entries(limits).map(([key, value]) => [key, limit(value)]));
    try {
      const made = await post("/keys", { name, scopes, limits: own, expires_in_days: limit(days) });
      // These pages need one from now on.
      if (isFirst && !storedKey()) keepKey(made.key, true);
      await onMade(made);
    } catch (error) {
      setFailure(error);
    }
  };
  const many = { type: "number", min: 1, placeholder: "no limit" };
  return html`<form class="stack tight" onSubmit=${save}>
    <div class="fields">
      ${field("name", "Name", { required: true, maxlength: 64, placeholder: "support-app", autocomplete: "off" })}
      ${field("requests_per_minute", "Requests a minute", many)}
      ${field("tokens_per_day", "Tokens a day", many)}
      ${field("queued_jobs", "Waiting jobs", { ...many, min: 0 })}
      ${field("days", "Ends after days", { ...many, step: "any", placeholder: "never" })}
    </div>
    <fieldset><legend>It may</legend>${SCOPES.map(([scope, label]) => html`<label key=${scope} class="check"><input type="checkbox" checked=${form.scopes.includes(scope)} onChange=${() => toggle(scope)} /> ${label}</label>`)}</fieldset>
    ${isFirst && html`<p class="small muted">From the first key on, every request needs one; this browser stores it.</p>`}
    <${Problem} error=${failure} />
    <div class="row"><button type="submit" class="primary" disabled=${form.scopes.length === 0}>Make the key</button></div>
  </form>`;
}

function Usage() {
  const since = new Date(Date.now() - (DAYS - 1) * 86_400_000).toISOString().slice(0, 10);
  const { value } = useLoaded(() => get(`/usage?since=${since}`), [since], 10_000);
  if (!value?.data.length) return null;
  return html`<${Card} class="card whole-row" title=${`Used in ${DAYS} days`}><table class="cards-if-narrow">
    <caption class="visually-hidden">Usage by key and model</caption>
    <thead><tr><th scope="col">Key</th><th scope="col">Model</th><th scope="col">Requests</th><th scope="col">Tokens</th><th scope="col">Training</th><th scope="col">Exports</th></tr></thead>
    <tbody>${sum(value.data).map((row) => html`<tr key=${`${row.key} ${row.model}`}>
      <td class="wrap">${row.key_name ?? "none"}</td>
      <td data-label="Model" class="wrap">${row.model}</td>
      <td data-label="Requests" class="numbers">${count(row.requests)}</td>
      <td data-label="Tokens" class="numbers">${count(row.prompt_tokens + row.completion_tokens + row.training_tokens)}</td>
      <td data-label="Training" class="numbers">${minutes(row.training_seconds)}</td>
      <td data-label="Exports" class="numbers">${minutes(row.export_seconds)}</td>
    </tr>`)}</tbody>
  </table><//>`;
}

const minutes = (seconds) => (seconds ? `${Math.round(seconds / 60)} min` : "–");

/** The days of a key and model added up. */
function sum(rows) {
  const found = new Map();
  for (const row of rows) {
    const key = `${row.key} ${row.model}`;
    const before = found.get(key);
    const numbers = ["requests", "prompt_tokens", "completion_tokens", "training_tokens", "training_seconds", "export_seconds"];
    found.set(key, before ? { ...before, ...Object.fromEntries(numbers.map((name) => [name, before[name] + row[name]])) } : row);
  }
  return [...found.values()];
}
