// A field for a base model: those that are here, and while the person types those of the Hub that match.
//
// The pattern is the combobox with a list of w3.org/WAI/ARIA/apg: the focus stays in the field.

import { useState } from "../vendor/htm-preact.js";
import { bytes } from "./format.js";
import { about, Fit } from "./model_fit.js";
import { search } from "./models.js";
import { html, useLoaded } from "./ui.js";

const SOON = 400;
const MOST = 8;

export function ModelPicker({ id, value, models, onChange, ...rest }) {
  const [isOpen, setOpen] = useState(false);
  const [isTyped, setTyped] = useState(false);
  const [active, setActive] = useState(-1);
  const query = isOpen && isTyped ? value.trim() : "";
  const { value: found } = useLoaded(() => (query.length > 1 ? search(query, MOST) : null), [query], 0, SOON);
  const here = models.filter(({ name }) => !isTyped || name.toLowerCase().includes(value.trim().toLowerCase()));
  const onHub = query && found ? found.data.filter(({ name }) => !models.some((one) => one.name === name)) : [];
  const options = [...here, ...onHub];
  const close = () => (setOpen(false), setTyped(false), setActive(-1));
  const choose = (name) => (onChange(name), close());
  const open = () => isOpen || (setOpen(true), setActive(-1));
  const move = (by) => (open(), setActive(options.length ? (active + by + options.length + (active < 0 && by < 0 ? 1 : 0)) % options.length : -1));
  const press = (event) => {
    if (event.key === "ArrowDown") move(1);
    else if (event.key === "ArrowUp") move(-1);
    else if (event.key === "Enter" && isOpen && options[active]) choose(options[active].name);
    else if (event.key === "Escape" && isOpen) close();
    else return;
    event.preventDefault();
  };
  const place = (model, index) => html`<li key=${model.name} role="option" id=${`${id}-${index}`} aria-selected=${index === active ? "true" : "false"}
    onMouseDown=${(event) => event.preventDefault()} onClick=${() => choose(model.name)} ref=${(element) => index === active && element?.scrollIntoView({ block: "nearest" })}>
    <span class="wrap">${model.name}</span> <span class="small muted">${model.state ? [model.state.replaceAll("_", " "), model.size_bytes && bytes(model.size_bytes)].filter(Boolean).join(" · ") : about(model)}</span> <${Fit} name=${model.name} />
  </li>`;
  return html`<div class="picker">
    <input id=${id} role="combobox" aria-expanded=${isOpen && options.length > 0 ? "true" : "false"} aria-controls=${`${id}-list`} aria-autocomplete="list" aria-activedescendant=${options[active] ? `${id}-${active}` : undefined}
      autocomplete="off" spellcheck="false" value=${value} ...${rest} onInput=${({ target }) => (setOpen(true), setTyped(true), setActive(-1), onChange(target.value))}
      onClick=${open} onKeyDown=${press} onBlur=${close} />
    ${isOpen && (options.length > 0 || found?.message) && html`<div class="picker-list">
      <div id=${`${id}-list`} role="listbox" aria-label="Base models">
        ${here.length > 0 && html`<ul role="group" aria-label="Here">${here.map(place)}</ul>`}
        ${onHub.length > 0 && html`<ul role="group" aria-label="On the Hub">${onHub.map((model, index) => place(model, here.length + index))}</ul>`}
      </div>
      ${query && found?.message && html`<p class="small muted" role="status">${found.message}</p>`}
    </div>`}
  </div>`;
}
