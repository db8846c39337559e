// Names that stay: where each points, moving it, sharing it between two models, rolling it back.

import { useState } from "../vendor/htm-preact.js";
import { getAll, post, put, remove } from "./api.js";
import { ago, moment, percent } from "./format.js";
import { Action, Card, Confirm, Field, html, Problem, tell, useLoaded } from "./ui.js";

const NEW = { name: "", target: "", trial: "", share: 10 };
const pathOf = (name) => `/aliases/${encodeURIComponent(name)}`;

export function Aliases({ adapters }) {
  const { value: aliases, error, reload } = useLoaded(() => getAll("/aliases"), [], 3_000);
  const [form, setForm] = useState(null);
  const [doomed, setDoomed] = useState(null);
  const actions = html`<button type="button" class="small" aria-expanded=${Boolean(form)} onClick=${() => setForm(form ? null : NEW)}>New alias</button>`;
  const roll = async ({ name }) => {
    const now = await post(`${pathOf(name)}/rollback`);
    tell(`${name} points to ${textOf(now)} again.`, "good");
    await reload();
  };
  return html`<${Card} title="Aliases" actions=${actions}>
    <div class="stack tight">
      <p class="small muted">Names that stay: an app calls the alias as its model, and you move what stands behind it.</p>
      ${form && html`<${AliasForm} key=${`${form.name} ${form.version}`} form=${form} adapters=${adapters} onDone=${async () => (setForm(null), await reload())} />`}
      <${Problem} error=${error} />
      ${aliases?.length > 0 && html`<table class="cards-if-narrow">
        <caption class="visually-hidden">Aliases</caption>
        <thead><tr><th scope="col">Alias</th><th scope="col">Points to</th><th scope="col">Version</th><th scope="col">Changed</th><th scope="col"><span class="visually-hidden">What to do</span></th></tr></thead>
        <tbody>${aliases.map((alias) => html`<tr key=${alias.name}>
          <td><strong class="wrap">${alias.name}</strong></td>
          <td data-label="Points to" class="wrap">${textOf(alias)}</td>
          <td data-label="Version" class="numbers">${alias.version}</td>
          <td data-label="Changed" title=${moment(alias.updated_at)}>${ago(alias.updated_at)}</td>
          <td><div class="row">
            <button type="button" class="small" aria-label=${`Point elsewhere: ${alias.name}`} onClick=${() => setForm(toForm(alias))}>Point elsewhere</button>
            <${Action} class="small" aria-label=${`Roll back ${alias.name}`} onClick=${() => roll(alias)}>Roll back<//>
            <button type="button" class="small danger" aria-label=${`Delete the alias ${alias.name}`} onClick=${() => setDoomed(alias)}>Delete</button>
          </div></td>
        </tr>`)}</tbody>
      </table>`}
    </div>
    ${doomed && html`<${Confirm} title=${`Delete the alias ${doomed.name}?`} label="Delete it" onClose=${() => setDoomed(null)}
      onConfirm=${async () => {
        await remove(pathOf(doomed.name));
        tell(`${doomed.name} is deleted.`, "good");
        await reload();
      }}>
      <p>Requests that name it are answered with 404 from then on. What it points to stays, and a rollback brings it back.</p>
    <//>`}
  <//>`;
}

/** What an alias points to, in words. */
export const textOf = ({ targets }) =>
  targets.length === 1 ? targets[0].name : targets.map(({ name, share }) => `${name} ${percent(share)}`).join(", ");

function toForm({ name, version, targets }) {
  const [first, second] = [...targets].sort((one, other) => other.share - one.share);
  return { name, version, target: first.name, trial: second?.name ?? "", share: second ? Math.round(second.share * 100) : NEW.share };
}

function AliasForm({ form: start, adapters, onDone }) {
  const [form, setForm] = useState(start);
  const [failure, setFailure] = useState(null);
  const set = (name) => ({ target }) => setForm({ ...form, [name]: target.value });
  const field = (name) => ({ id: `alias-${name}`, value: form[name], onInput: set(name), autocomplete: "off", spellcheck: "false" });
  const save = async (event) => {
    event.preventDefault();
    setFailure(null);
    try {
      // Nobody else's change is undone unseen.
      const headers = form.version ? { "if-match": `"${form.version}"` } : { "if-none-match": "*" };
      await put(pathOf(form.name.trim()), toBody(form), { headers });
      await onDone();
    } catch (error) {
      setFailure(error);
    }
  };
  return html`<form class="stack tight" onSubmit=${save}>
    <div class="fields">
      <${Field} id="alias-name" label="Alias"><input required placeholder="support" disabled=${Boolean(form.version)} ...${field("name")} /><//>
      <${Field} id="alias-target" label="Points to" help="An adapter or a base model."><input required list="alias-models" aria-describedby="alias-target-help" ...${field("target")} /><//>
      <${Field} id="alias-trial" label="Trial of another" help="Empty: none."><input list="alias-models" aria-describedby="alias-trial-help" ...${field("trial")} /><//>
      ${form.trial && html`<${Field} id="alias-share" label="Its share, in percent"><input type="number" min="1" max="99" step="any" required ...${field("share")} /><//>`}
    </div>
    <datalist id="alias-models">${adapters.map(({ id, name }) => html`<option key=${id} value=${name} />`)}</datalist>
    <${Problem} error=${failure} />
    <div class="row"><button type="submit" class="primary">${form.version ? "Point it there" : "Make the alias"}</button></div>
  </form>`;
}

function toBody({ target, trial, share }) {
  const first = target.trim();
  const second = trial.trim();
  if (!second) return { target: first };
  return { shares: { [first]: (100 - Number(share)) / 100, [second]: Number(share) / 100 } };
}
