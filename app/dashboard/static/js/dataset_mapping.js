// Says what the columns of a file mean: its first rows as a table, a role for each column, and the first row as it is read.

import { useState } from "../vendor/htm-preact.js";
import { send } from "./api.js";
import { percent, plural } from "./format.js";
import { asText, Preference, RowContent } from "./rows.js";
import { Action, Dialog, html, Problem, Tabs, useLoaded } from "./ui.js";
import { inWords } from "./words.js";

const ROWS = 5;
const CELL = 240;
const FORMATS = [
  ["instruction", "Question and answer"],
  ["messages", "Conversation"],
  ["prompt_completion", "Prompt and completion"],
  ["text", "Plain text"],
  ["comparisons", "Two answers"],
  ["labelled_answers", "Good or bad"],
];
const ABOUT = {
  instruction: "A conversation of one turn, with the base model's chat template. The usual choice for questions and answers.",
  messages: "One column holds the whole conversation, as a list of messages.",
  prompt_completion: "The completion follows the prompt as it is, without a chat template.",
  text: "The whole text is learned as it is, without a chat template.",
  comparisons: "A preferred answer and a rejected one to the same question, for jobs with the method dpo, orpo or kto. A prompt that is text has no chat template, a question has.",
  labelled_answers: "An answer, and whether it is a good one, for jobs with the method kto. A prompt that is text has no chat template, a question has.",
};
// The roles of each format: the API's name, what people call it, whether it is needed, and whether only a column of that name has it.
const ROLES = {
  instruction: [["instruction", "Question", true], ["output", "Answer", true], ["input", "Context of the question"], ["system", "System prompt"], ["history", "Earlier turns"], ["tools", "Functions"]],
  messages: [["messages", "Messages", true], ["system", "System prompt"], ["tools", "Functions"]],
  prompt_completion: [["prompt", "Prompt", true], ["completion", "Completion", true], ["system", "System prompt"], ["tools", "Functions"]],
  text: [["text", "Text", true]],
  comparisons: [["instruction", "Question"], ["prompt", "Prompt"], ["chosen", "Preferred answer", true], ["rejected", "Rejected answer", true], ["input", "Context of the question"], ["system", "System prompt"], ["history", "Earlier turns"], ["tools", "Functions"], ["messages", "Messages, the preferred answer last", false, true], ["conversations", "Messages of the prompt", false, true], ["rejected_response", "Rejected answer", false, true], ["preferred_output", "Preferred answer", false, true], ["non_preferred_output", "Rejected answer", false, true]],
  labelled_answers: [["instruction", "Question"], ["output", "Answer"], ["prompt", "Prompt"], ["completion", "Completion"], ["messages", "Messages"], ["label", "Good or bad", true], ["input", "Context of the question"], ["system", "System prompt"], ["history", "Earlier turns"], ["tools", "Functions"], ["conversations", "Messages", false, true]],
};

/** The first records of a file, read with a column map (null: its own columns, or the likeliest). */
export async function inspect(file, columnMap = null, options = {}) {
  const form = new FormData();
  form.set("file", file);
  if (columnMap) form.set("column_map", JSON.stringify(columnMap));
  return (await send("/datasets/inspect", { method: "POST", body: form, ...options })).json();
}

/**
 * `error` is why the upload was refused (null: it was not tried). `onUpload` gets the choices of the upload's form, and
 * `children` is shown above the button.
 */
export function MappingDialog({ file, sample, error, share, onUpload, onClose, children }) {
  const [format, setFormat] = useState(chooseFormat(sample));
  const [roles, setRoles] = useState(() => readRoles(sample, chooseFormat(sample)));
  const [isChanged, setChanged] = useState(false);
  const isOwn = !isChanged && sample.format != null && format === chooseFormat(sample);
  const chosen = Object.fromEntries(Object.entries(roles).filter(([, role]) => role).map(([column, role]) => [role, column]));
  const columnMap = isOwn ? sample.column_map : chosen;
  const missing = isOwn ? [] : ROLES[format].filter(([role, , isNeeded]) => isNeeded && !(role in columnMap));
  const { value, error: failure, isLoading } = useLoaded((signal) => inspect(asFile(sample.records), columnMap, { signal }), [JSON.stringify(columnMap)], 0, 150);
  const reading = value ?? sample;
  const lost = error?.unusedFields?.length ? error.unusedFields : reading.unused_fields.filter((field) => field.changes_learning);
  const choose = (next) => {
    setFormat(next);
    setRoles(readRoles(sample, next));
  };
  const assign = (column, role) => {
    setChanged(true);
    setRoles({ ...Object.fromEntries(Object.entries(roles).map(([name, own]) => [name, own === role ? "" : own])), [column]: role });
  };
  const upload = () => onUpload({ column_map: JSON.stringify(columnMap), ...(lost.length ? { on_unused: "ignore" } : {}) });
  return html`<${Dialog} title=${`What are the columns of ${file.name}?`} isWide=${true} onClose=${onClose}>
    ${error && html`<div class="note warn"><strong>${inWords(error.message)}</strong></div>`}
    <div><${Tabs} label="Read as" value=${format} options=${FORMATS} onChange=${choose} /></div>
    <p class="small muted">${ABOUT[format]}</p>
    <${FirstRows} sample=${sample} format=${format} roles=${roles} onAssign=${assign} />
    ${missing.length > 0
      ? html`<p class="note">${`Choose the column that is the ${missing.map(([, label]) => label.toLowerCase()).join(", and the one that is the ")}.`}</p>`
      : html`<section class="stack tight" aria-label="The first row as it is read" aria-busy=${isLoading}>
          <h3>The first row as it is read</h3>
          <${Problem} error=${failure ?? (reading.rows.length ? null : reading.error)} />
          ${reading.rows.length > 0 && html`<${RowContent} row=${reading.rows[0].row} />`}
        </section>`}
    ${format !== "comparisons" && html`<${Pair} record=${sample.records[0]?.values} columnMap=${columnMap} />`}
    ${missing.length === 0 && html`<${Unused} file=${file} fields=${reading.unused_fields} refused=${error?.unusedFields} rows=${sample.records.length} />`}
    ${children}
    ${share != null && html`<div><progress value=${share} max="1" aria-label="Upload"></progress><span class="small" role="status">${share < 1 ? percent(share) : "Reading the rows…"}</span></div>`}
    <div class="row">
      <button type="button" onClick=${onClose}>Not now</button>
      <${Action} class="primary" disabled=${missing.length > 0 || share != null} onClick=${upload}>${lost.length ? "Upload without these fields" : "Upload"}<//>
    </div>
  <//>`;
}

const chooseFormat = (sample) => {
  const found = sample.format === "conversations" ? "messages" : (sample.format ?? sample.guesses[0]?.format);
  return found in ROLES ? found : "instruction";
};

/** The role of each column: by the map with which the sample was read, else the guess for this format, else its own name. */
function readRoles(sample, format) {
  const isRead = chooseFormat(sample) === format && sample.format;
  const map = isRead ? sample.column_map : (sample.guesses.find((guess) => guess.format === format)?.column_map ?? {});
  const roles = Object.fromEntries(sample.columns.map((column) => [column, ""]));
  for (const [role, column] of Object.entries(map)) roles[column] = role;
  for (const [role] of ROLES[format]) if (!(role in map) && roles[role] === "") roles[role] = role;
  // A conversation under ShareGPT's own name is one of messages.
  if (sample.format === "conversations" && format === "messages" && roles.conversations === "") roles.conversations = "messages";
  return roles;
}

const asFile = (records) => new File([records.map(({ values }) => JSON.stringify(values)).join("\n")], "sample.jsonl");

function FirstRows({ sample, format, roles, onAssign }) {
  const { columns, records } = sample;
  return html`<div class="scroll" tabindex="0" role="group" aria-label="The first rows"><table class="first-rows">
    <caption class="visually-hidden">The first rows, and what each column is</caption>
    <thead><tr>${columns.map((column) => html`<th key=${column} scope="col"><div class="mono wrap">${column}</div>
      <select aria-label=${`What ${column} is`} class=${roles[column] ? "used" : ""} value=${roles[column]} onChange=${({ target }) => onAssign(column, target.value)}>
        ${!isReadAnyway(format, column) && html`<option value="">Not used</option>`}
        ${ROLES[format].filter(([role, , , isOwnName]) => !isOwnName || role === column).map(([role, label]) => html`<option key=${role} value=${role}>${label}</option>`)}
      </select></th>`)}</tr></thead>
    <tbody>${records.slice(0, ROWS).map(({ line, values }) => html`<tr key=${line}>${columns.map((column) => html`<td key=${column} class=${roles[column] ? "wrap" : "wrap muted"}>${cut(asText(values[column]))}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

/** Whether the API reads a column of this name without a map. */
const isReadAnyway = (format, column) => ROLES[format].some(([role]) => role === column);

const cut = (text) => (text.length > CELL ? `${text.slice(0, CELL)}…` : text);

/** A preferred and a rejected answer, where the file has both and is not read as comparisons. */
function Pair({ record = {}, columnMap }) {
  const named = (...names) => Object.keys(record).find((column) => names.some((name) => column.toLowerCase().startsWith(name)));
  const [chosen, rejected] = [named("chosen", "preferred"), named("rejected", "dispreferred", "non_preferred")];
  if (!chosen || !rejected) return null;
  const isLearned = Object.values(columnMap).includes(chosen);
  return html`<section class="stack tight" aria-label="Preferred and rejected answers">
    <h3>Preferred and rejected answers</h3>
    <p class="note warn">${`Read so, the answers are not compared: ${isLearned ? "the chosen ones are learned, and the rejected ones are not used" : "neither is used"}. Read as "Two answers", both are.`}</p>
    <${Preference} chosen=${record[chosen]} rejected=${record[rejected]} notes=${[isLearned ? "learned" : "not used", "not used"]} />
  </section>`;
}

/** Fields from which nothing is learned: those for which the file was refused, then the others of the first rows. */
function Unused({ file, fields, refused, rows }) {
  const known = new Set((refused ?? []).map(({ field }) => field));
  const others = fields.filter(({ field }) => !known.has(field));
  return html`
    ${refused?.length > 0 && html`<div class="scroll" tabindex="0" role="group" aria-label="Fields that would not be used"><table>
      <caption class="visually-hidden">${`Fields of ${file.name} that would not be used`}</caption>
      <thead><tr><th scope="col">Not used, but it changes what is learned</th><th scope="col">Rows</th><th scope="col">First lines</th></tr></thead>
      <tbody>${refused.map(({ field, rows: count, lines }) => html`<tr key=${field}><td class="wrap mono">${field}</td><td class="numbers">${count}</td><td class="wrap">${lines.join(", ")}</td></tr>`)}</tbody>
    </table></div>`}
    ${others.length > 0 && html`<section aria-label="Not used">
      <h3>Not used</h3>
      <ul class="small bullets">${others.map(({ field, rows: count, changes_learning: changes }) => html`<li key=${field}><span class="mono wrap">${field}</span>: ${count} of the first ${plural(rows, "row")}${changes && html`, <strong>changes what is learned</strong>`}</li>`)}</ul>
    </section>`}`;
}
