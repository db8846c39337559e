// Rows of a dataset as they are: turns, thoughts, functions with their calls and results, texts, pairs of answers.

import { Calls, Thoughts } from "./answering.js";
import { plural } from "./format.js";
import { html } from "./ui.js";

const ROLES = { system: "System prompt", user: "User", assistant: "Assistant", tool: "Result" };
const THOUGHTS = /^\s*<think>([\s\S]*?)<\/think>\s*/;

/** A row as the API shows it: `messages`; `prompt` and `completion`, perhaps with a `label`; `text`; or `prompt`, `chosen` and `rejected`. */
export function RowContent({ row }) {
  if (row.rejected != null || row.label != null) {
    return html`<div class="stack tight">
      ${row.tools?.length > 0 && html`<${Functions} tools=${row.tools} />`}
      ${typeof row.prompt === "string" ? html`<${Turn} title="Prompt" text=${row.prompt} />` : html`<${AnyContent} value=${row.prompt} />`}
      ${row.rejected != null ? html`<${Preference} chosen=${row.chosen} rejected=${row.rejected} />` : html`<${Answer} title=${row.label ? "Good answer" : "Bad answer"} isGood=${row.label} value=${row.completion} />`}
    </div>`;
  }
  if (row.messages) {
    const called = Object.fromEntries(row.messages.flatMap((message) => message.tool_calls ?? []).map((call) => [call.id, call.function?.name]));
    return html`<div class="stack tight">
      ${row.tools?.length > 0 && html`<${Functions} tools=${row.tools} />`}
      ${row.messages.map((message, index) => html`<${Message} key=${index} message=${message} called=${called} />`)}
    </div>`;
  }
  if (row.prompt != null) {
    return html`<div class="stack tight"><${Turn} title="Prompt" text=${row.prompt} /><${Turn} title="Completion" kind="assistant" text=${row.completion} /></div>`;
  }
  return html`<${Turn} title="Text" kind="assistant" text=${row.text} />`;
}

/** Two answers to one prompt, side by side: texts or lists of messages. `notes` says what becomes of each. */
export const Preference = ({ chosen, rejected, notes = ["preferred", "not preferred"] }) => html`<div class="answers">
  <${Answer} title="Chosen answer" note=${notes[0]} isGood=${true} value=${chosen} />
  <${Answer} title="Rejected answer" note=${notes[1]} isGood=${false} value=${rejected} />
</div>`;

const Answer = ({ title, note, isGood, value }) => html`<section class=${`pair ${isGood ? "good" : "bad"}`} aria-label=${title}>
  <h3>${title} ${note && html`<span class="small muted">${note}</span>`}</h3><${AnyContent} value=${value} />
</section>`;

const AnyContent = ({ value }) => {
  const messages = readMessages(value);
  return messages ? html`<${RowContent} row=${{ messages }} />` : html`<div class="wrap">${asText(value)}</div>`;
};

/** The messages that a cell holds, in the API's form; null where it holds none. */
export function readMessages(value) {
  const list = typeof value === "string" ? parseList(value) : value;
  if (!Array.isArray(list) || !list.length || !list.every((one) => one && (one.role || one.from))) return null;
  return list.map((one) => ({ ...one, role: ROLE_NAMES[one.role ?? one.from] ?? one.role ?? one.from, content: asText(one.content ?? one.value ?? "") }));
}

const ROLE_NAMES = { human: "user", gpt: "assistant", model: "assistant", developer: "system", observation: "tool" };

function parseList(text) {
  if (!text.trimStart().startsWith("[")) return null;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** A value as text: itself, or as JSON. */
export const asText = (value) => (typeof value === "string" ? value : value == null ? "" : JSON.stringify(value));

/** `called` has the names of the functions by the ids of the row's calls. */
function Message({ message, called }) {
  const { role, content = "", reasoning_content: reasoning, tool_calls: calls = [], weight, name, tool_call_id: callId } = message;
  const inText = role === "assistant" ? content.match(THOUGHTS) : null;
  const text = inText ? content.slice(inText[0].length) : content;
  const source = name ?? called[callId] ?? callId;
  const title = role === "tool" && source ? `Result of ${source}` : (ROLES[role] ?? role);
  return html`<${Turn} title=${title} kind=${role} text=${text} isLeftOut=${weight === 0}>
    <${Thoughts} text=${reasoning ?? inText?.[1].trim()} />
    <${Calls} calls=${calls.map((call, index) => ({ call: index, name: call.function?.name, arguments: asText(call.function?.arguments) }))} />
  <//>`;
}

const Turn = ({ title, kind = "user", text, isLeftOut, children }) => {
  const [thoughts, calls] = children ?? [];
  return html`<div class=${`turn ${kind}`}>
    <div class="small muted"><strong>${title}</strong>${isLeftOut && " (not learned)"}</div>
    ${thoughts}${text && html`<div class=${kind === "tool" ? "wrap mono" : "wrap"}>${text}</div>`}${calls}
  </div>`;
};

/** The functions that the assistant of a row may call. */
const Functions = ({ tools }) => html`<details class="small">
  <summary>${plural(tools.length, "function")}: <span class="mono wrap">${tools.map((tool) => tool.function.name).join(", ")}</span></summary>
  <ul class="list">${tools.map(({ function: { name, description, parameters } }) => html`<li key=${name}>
    <strong class="mono wrap">${name}</strong> ${description}
    <${Parameters} parameters=${parameters} />
  </li>`)}</ul>
</details>`;

function Parameters({ parameters }) {
  const properties = Object.entries(parameters?.properties ?? {});
  if (!properties.length) return html`<div class="muted">It takes no arguments.</div>`;
  const required = parameters.required ?? [];
  return html`<ul class="bullets">${properties.map(([name, { type, description } = {}]) => html`<li key=${name}><code>${name}</code> <span class="muted">${[asText(type), !required.includes(name) && "optional"].filter(Boolean).join(", ")}</span> ${description}</li>`)}</ul>`;
}
