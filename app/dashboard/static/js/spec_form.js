// A job's settings as fields, out of the API's own description of them. Knows no setting by name but ESSENTIAL.

import { get } from "./api.js";
import { Field, html } from "./ui.js";

/** What most people look at; everything else is a click away. */
export const ESSENTIAL = [
  "method",
  "training.num_train_epochs", "training.learning_rate", "training.per_device_train_batch_size",
  "training.max_seq_length", "lora.r", "lora.alpha", "lora.target_modules", "training.validation_split",
  "training.assistant_only_loss", "quantization.load_in_4bit",
];

/** Every setting of a job: `{ path, group, name, types, choices, isNullable, fallback, example, description }`. */
export async function readFields() {
  const { components } = await get("/openapi.json");
  const { schemas } = components;
  return Object.entries(schemas.JobSpec.properties).flatMap(([name, schema]) => {
    const reference = [schema, ...(schema.anyOf ?? [])].find(({ $ref }) => $ref)?.$ref;
    const inner = reference && schemas[reference.split("/").at(-1)];
    if (!inner) return [makeField("", name, schema, schemas)];
    return Object.entries(inner.properties).map(([own, found]) => makeField(name, own, found, schemas));
  });
}

// Settings of one method stand in an object of its name; these are for a method that imitates answers.
const METHODS = ["dpo", "kto", "orpo"];
const OF_SFT = ["training.packing", "training.neftune_noise_alpha"];
// The learning rate of a method that learns from preferences, where none is named.
const PREFERENCE_RATE = 2e-5;

/** The settings that a job of a method has, with its defaults. */
export function ofMethod(fields, method) {
  if (!METHODS.includes(method)) return fields.filter(({ group }) => !METHODS.includes(group));
  const own = fields.filter(({ group, path }) => (!METHODS.includes(group) || group === method) && !OF_SFT.includes(path));
  return own.map((field) => (field.path === "training.learning_rate" ? { ...field, fallback: PREFERENCE_RATE } : field));
}

function makeField(group, name, schema, schemas) {
  const kinds = schema.anyOf ?? [schema];
  const ofList = kinds.map(({ items }) => schemas[items?.$ref?.split("/").at(-1)]?.enum).find(Boolean);
  const choices = ofList ?? kinds.flatMap((kind) => kind.enum ?? (kind.const !== undefined ? [kind.const] : kind.type === "boolean" ? [true, false] : []));
  const types = kinds.map((kind) => (kind.enum || kind.const !== undefined ? "choice" : kind.type));
  return {
    path: group ? `${group}.${name}` : name,
    group,
    name,
    types: types.filter((type) => type !== "null"),
    choices,
    isNullable: types.includes("null"),
    fallback: schema.default ?? null,
    example: schema.default === undefined ? schema.examples?.[0] : undefined,
    pattern: kinds.find((kind) => kind.pattern)?.pattern ?? null,
    several: Boolean(ofList) || kinds.some(({ items }) => items?.enum),
    description: toHelp(schema.description ?? ""),
  };
}

const isOnlyChoice = ({ types }) => types.every((type) => type === "choice" || type === "boolean");
/** A list of given words alone, which may be empty. */
const isChecklist = ({ types, several }) => several && types.length === 1 && types[0] === "array";
const isSwitch = ({ types }) => types.length === 1 && types[0] === "boolean";

/** Lists whose items are a line each, as commas are part of them. */
const LINES = ["sample_prompts"];
const escape = (line) => line.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
const unescape = (line) => line.replace(/\\(\\|n)/g, (_, sign) => (sign === "n" ? "\n" : "\\"));

/** What a control shows for a value. */
export function toText(value, name = "") {
  if (value == null) return "";
  if (Array.isArray(value)) return LINES.includes(name) ? value.map(escape).join("\n") : value.join(", ");
  if (typeof value !== "object") return String(value);
  return Object.entries(value).map(([key, own]) => `${key}: ${own}`).join("\n");
}

/** The value that a control's text means; what can't be read is left to the API to refuse, in its own words. */
function parse(field, text) {
  const { name, types, choices, isNullable, fallback } = field;
  const found = text.trim();
  if (isChecklist(field)) return found.split(",").map((part) => part.trim()).filter(Boolean);
  if (!found) return isNullable ? null : fallback;
  const choice = choices.find((one) => String(one) === found);
  if (choice !== undefined) return choice;
  if ((types.includes("number") || types.includes("integer")) && Number.isFinite(Number(found))) return Number(found);
  if (types.includes("object")) return toEntries(found);
  if (LINES.includes(name)) return found.split("\n").map((line) => unescape(line.trim())).filter(Boolean);
  if (types.includes("array")) return found.split(",").map((part) => part.trim()).filter(Boolean);
  return types.includes("string") ? text : found;
}

/** `key: value` a line; a line without a colon is a key with an empty value. */
export function toEntries(text) {
  const lines = text.split("\n").filter((line) => line.trim());
  return Object.fromEntries(lines.map((line) => {
    const [key, ...rest] = line.split(":");
    return [key.trim(), rest.join(":").trim()];
  }));
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

/** The controls' texts for a job that exists, or for some settings; what they leave to the recipe stays so. */
export function fromSpec(fields, spec) {
  const values = {};
  for (const { path, group, name, fallback } of fields) {
    const value = group ? spec[group]?.[name] : spec[name];
    if (value !== undefined && !isSame(value, fallback)) values[path] = toText(value, name);
  }
  return values;
}

// What people call a setting; its name in the API stands below it. Others are said in their own words.
const LABELS = {
  r: "Rank",
  alpha: "Alpha",
  bias: "Train biases",
  target_modules: "Target modules",
  modules_to_save: "Modules trained whole",
  use_rslora: "Rank-stabilized LoRA (rsLoRA)",
  use_dora: "DoRA",
  load_in_4bit: "4-bit base model (QLoRA)",
  bnb_4bit_quant_type: "4-bit number format",
  bnb_4bit_compute_dtype: "Compute type",
  bnb_4bit_use_double_quant: "Double quantization",
  num_train_epochs: "Epochs",
  max_steps: "Max steps",
  per_device_train_batch_size: "Batch size",
  per_device_eval_batch_size: "Evaluation batch size",
  gradient_accumulation_steps: "Gradient accumulation steps",
  optim: "Optimizer",
  lr_scheduler_type: "Learning rate schedule",
  warmup_ratio: "Warmup share",
  max_grad_norm: "Max gradient norm",
  fp16: "Mixed precision in float16",
  bf16: "Mixed precision in bfloat16",
  group_by_length: "Group rows of like length",
  max_seq_length: "Max sequence length",
  packing: "Pack short rows together",
  assistant_only_loss: "Learn from the assistant's turns alone",
  neftune_noise_alpha: "NEFTune noise",
  logging_steps: "Log every (steps)",
  save_steps: "Checkpoint every (steps)",
  keep_checkpoints: "Adapters of epochs to keep",
  eval_steps: "Evaluate every (steps)",
  validation_split: "Share held out for evaluation",
  early_stopping_patience: "Early stopping patience",
  evaluate: "Compare with the base model at the end",
  sample_prompts: "Sample prompts",
  sample_max_new_tokens: "Max new tokens of a sample answer",
  method: "Method",
  loss_type: "Loss",
  desirable_weight: "Weight of good answers",
  undesirable_weight: "Weight of bad answers",
  discopop_tau: "Temperature of DiscoPOP",
  log_prob_chosen: "Chosen answers",
  log_prob_rejected: "Rejected answers",
  reward_chosen: "Chosen answers, reward",
  reward_rejected: "Rejected answers, reward",
  gpus: "GPUs",
  nodes: "Hosts",
  strategy: "How GPUs share a job",
  suffix: "Suffix of an OpenAI name",
  metadata: "Metadata",
  report_to: "Report to",
  project: "Project",
  run_name: "Name of the run",
  entity: "User or team of Weights & Biases",
  repository: "Repository",
  content: "What is pushed",
  private: "Private",
  revision: "Branch",
  tags: "Tags",
  update: "Push into a repository that exists",
};

export const labelOf = (name) => {
  if (LABELS[name]) return LABELS[name];
  const words = name.replaceAll("_", " ").replace("bnb 4bit", "4-bit");
  return words[0].toUpperCase() + words.slice(1);
};

/** A description of the API as help for a field: what is null there is empty here. */
const toHelp = (description) => description.replaceAll("`", "").replace(/\bnull\b/g, "empty");

export function Setting({ field, values, onChange, wrong }) {
  const { path, name, fallback } = field;
  const id = `spec-${path.replaceAll(".", "-")}`;
  const text = values[path] ?? toText(fallback, name);
  const isChanged = path in values && !isSame(parse(field, values[path]), fallback);
  const described = `${id}-help${wrong ? ` ${id}-wrong` : ""}`;
  const common = { id, name: path, "aria-describedby": described, "aria-invalid": wrong ? "true" : undefined };
  const set = ({ target }) => onChange(path, target.value);
  if (isSwitch(field)) {
    return html`<div class="field">
      <label class=${`check ${isChanged ? "changed" : ""}`}><input type="checkbox" ...${common} checked=${text === "true"} onChange=${({ target }) => onChange(path, String(target.checked))} />${labelOf(name)}</label>
      ${wrong && html`<p class="wrong" id=${`${id}-wrong`}>${wrong}</p>`}<p class="help" id=${`${id}-help`}><${Help} ...${field} /></p>
    </div>`;
  }
  if (isChecklist(field)) {
    const chosen = parse(field, text);
    const toggle = (choice) => () => onChange(path, field.choices.filter((one) => chosen.includes(one) !== (one === choice)).join(", "));
    return html`<div class="field" role="group" aria-labelledby=${`${id}-label`} aria-describedby=${described}>
      <span class=${`field-label ${isChanged ? "changed" : ""}`} id=${`${id}-label`}>${labelOf(name)}</span>
      ${field.choices.map((choice) => html`<label key=${choice} class="check"><input type="checkbox" name=${path} value=${choice} checked=${chosen.includes(choice)} onChange=${toggle(choice)} />${choice}</label>`)}
      ${wrong && html`<p class="wrong" id=${`${id}-wrong`}>${wrong}</p>`}<p class="help" id=${`${id}-help`}><${Help} ...${field} /></p>
    </div>`;
  }
  return html`<${Field} id=${id} label=${labelOf(name)} help=${html`<${Help} ...${field} />`} wrong=${wrong} isChanged=${isChanged}>
    ${isOnlyChoice(field)
      ? html`<select ...${common} value=${text} onChange=${set}>${field.choices.map((choice) => html`<option key=${String(choice)} value=${String(choice)}>${String(choice)}</option>`)}</select>`
      : name === "chat_template" || LINES.includes(name) || field.types.includes("object")
        ? html`<textarea ...${common} rows=${name === "chat_template" ? 4 : 2} spellcheck="false" class=${LINES.includes(name) ? "" : "mono"} placeholder=${field.types.includes("object") ? "key: value" : ""} value=${text} onInput=${set}></textarea>`
        : html`<input ...${common} value=${text} spellcheck="false" autocomplete="off" inputmode=${field.types.some((type) => type === "array" || type === "string") ? "text" : "decimal"} placeholder=${field.isNullable ? "not set" : (field.example ?? "")} onInput=${set} />`}
  <//>`;
}

const Help = ({ name, description, types, several, choices }) => html`${description}${several && !isChecklist({ types, several }) && ` One of ${choices.join(", ")}; or several with commas.`}${types.includes("object") && " One key: value a line."}${LINES.includes(name) && " One prompt a line."} <code class="api-name">${name}</code>`;
