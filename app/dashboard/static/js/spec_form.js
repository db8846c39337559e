// A job's settings as fields, out of the API's own description of them. Knows no setting by name but ESSENTIAL.

import { get } from "./api.js";
import { Field, html } from "./ui.js";

/** What most people look at; everything else is a click away. */
export const ESSENTIAL = [
  "training.num_train_epochs", "training.learning_rate", "training.per_device_train_batch_size",
  "training.max_seq_length", "lora.r", "lora.alpha", "lora.target_modules", "training.validation_split",
  "training.assistant_only_loss", "quantization.load_in_4bit",
];

/** Every setting of a job: `{ path, group, name, types, choices, isNullable, fallback, description }`. */
export async function readFields() {
  const { components } = await get("/openapi.json");
  const { schemas } = components;
  return Object.entries(schemas.JobSpec.properties).flatMap(([name, schema]) => {
    const inner = schema.$ref && schemas[schema.$ref.split("/").at(-1)];
    if (!inner) return [makeField("", name, schema)];
    return Object.entries(inner.properties).map(([own, found]) => makeField(name, own, found));
  });
}

function makeField(group, name, schema) {
  const kinds = schema.anyOf ?? [schema];
  const choices = kinds.flatMap((kind) => kind.enum ?? (kind.const !== undefined ? [kind.const] : kind.type === "boolean" ? [true, false] : []));
  const types = kinds.map((kind) => (kind.enum || kind.const !== undefined ? "choice" : kind.type));
  return {
    path: group ? `${group}.${name}` : name,
    group,
    name,
    types: types.filter((type) => type !== "null"),
    choices,
    isNullable: types.includes("null"),
    fallback: schema.default ?? null,
    description: (schema.description ?? "").replaceAll("`", ""),
  };
}

const isOnlyChoice = ({ types }) => types.every((type) => type === "choice" || type === "boolean");
const isSwitch = ({ types }) => types.length === 1 && types[0] === "boolean";

/** What a control shows for a value. */
export const toText = (value) => (value == null ? "" : Array.isArray(value) ? value.join(", ") : String(value));

/** The value that a control's text means; what can't be read is left to the API to refuse, in its own words. */
function parse({ types, choices, isNullable, fallback }, text) {
  const found = text.trim();
  if (!found) return isNullable ? null : fallback;
  const choice = choices.find((one) => String(one) === found);
  if (choice !== undefined) return choice;
  if ((types.includes("number") || types.includes("integer")) && Number.isFinite(Number(found))) return Number(found);
  if (types.includes("array")) return found.split(",").map((part) => part.trim()).filter(Boolean);
  return types.includes("string") ? text : found;
}

const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** The body of a job: what was changed alone, so that the recipe, or an adapter, says the rest. */
export function toSpec(fields, values) {
  const spec = {};
  for (const field of fields) {
    if (!(field.path in values)) continue;
    const value = parse(field, values[field.path]);
    if (isSame(value, field.fallback)) continue;
    if (field.group) (spec[field.group] ??= {})[field.name] = value;
    else spec[field.name] = value;
  }
  return spec;
}

/** The controls' texts for a job that exists; what it left to the recipe stays so. */
export function fromSpec(fields, spec) {
  const values = {};
  for (const { path, group, name, fallback } of fields) {
    const value = (group ? spec[group]?.[name] : spec[name]) ?? null;
    if (!isSame(value, fallback)) values[path] = toText(value);
  }
  return values;
}

// Names that say little to who has not used PEFT; all others are said in words.
const LABELS = {
  r: "Rank (r)",
  per_device_train_batch_size: "Batch size",
  per_device_eval_batch_size: "Evaluation batch size",
  max_seq_length: "Max sequence length",
  load_in_4bit: "4-bit base model (QLoRA)",
  num_train_epochs: "Epochs",
  lr_scheduler_type: "Learning rate schedule",
  optim: "Optimizer",
};

const label = (name) => {
  if (LABELS[name]) return LABELS[name];
  const words = name.replaceAll("_", " ").replace("bnb 4bit", "4-bit");
  return words[0].toUpperCase() + words.slice(1);
};

export function Setting({ field, values, onChange, wrong }) {
  const { path, name, description, fallback } = field;
  const id = `spec-${path.replaceAll(".", "-")}`;
  const text = values[path] ?? toText(fallback);
  const isChanged = path in values && !isSame(parse(field, values[path]), fallback);
  const described = `${id}-help${wrong ? ` ${id}-wrong` : ""}`;
  const common = { id, name: path, "aria-describedby": described, "aria-invalid": wrong ? "true" : undefined };
  const set = ({ target }) => onChange(path, target.value);
  if (isSwitch(field)) {
    return html`<div class="field">
      <label class=${`check ${isChanged ? "changed" : ""}`}><input type="checkbox" ...${common} checked=${text === "true"} onChange=${({ target }) => onChange(path, String(target.checked))} />${label(name)}</label>
      ${wrong && html`<p class="wrong" id=${`${id}-wrong`}>${wrong}</p>`}<p class="help" id=${`${id}-help`}>${description}</p>
    </div>`;
  }
  return html`<${Field} id=${id} label=${label(name)} help=${description} wrong=${wrong} isChanged=${isChanged}>
    ${isOnlyChoice(field)
      ? html`<select ...${common} value=${text} onChange=${set}>${field.choices.map((choice) => html`<option key=${String(choice)} value=${String(choice)}>${String(choice)}</option>`)}</select>`
      : name === "chat_template"
        ? html`<textarea ...${common} rows="4" spellcheck="false" class="mono" value=${text} onInput=${set}></textarea>`
        : html`<input ...${common} value=${text} spellcheck="false" autocomplete="off" inputmode=${field.types.some((type) => type === "array" || type === "string") ? "text" : "decimal"} placeholder=${field.isNullable ? "not set" : ""} onInput=${set} />`}
  <//>`;
}
