// Markdown as elements: headings, lists, tables, quotes, code, emphasis, links. Text stays text: HTML in it is shown.

import { html, useMemo } from "../vendor/htm-preact.js";
import { Copy } from "./ui.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*).*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +(.*)$/;
const HEADING = /^(#{1,6}) +(.*?)(?: +#+)?$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const TABLE_LINE = /^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*$/;

/** A text with Markdown; what is not understood stays as it was written. */
export function Markdown({ text }) {
  const found = useMemo(() => blocks(text.replaceAll("\r\n", "\n").split("\n")), [text]);
  return html`<div class="markdown">${found}</div>`;
}

function blocks(lines) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const [block, next] = readBlock(lines, at);
    if (block) found.push(block);
    at = next;
  }
  return found;
}

/** One block that begins at a line, and the line after it. */
function readBlock(lines, at) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  if (FENCE.test(line)) return readFence(lines, at);
  const heading = line.match(HEADING);
  // A page has one h1, its own.
  if (heading) return [html`<${`h${Math.min(heading[1].length + 2, 6)}`}>${inline(heading[2])}<//>`, at + 1];
  if (RULE.test(line)) return [html`<hr />`, at + 1];
  if (ITEM.test(line)) return readList(lines, at);
  if (line.startsWith(">")) {
    const end = findEnd(lines, at, (one) => one.startsWith(">"));
    return [html`<blockquote>${blocks(lines.slice(at, end).map((one) => one.replace(/^> ?/, "")))}</blockquote>`, end];
  }
  if (line.includes("|") && TABLE_LINE.test(lines[at + 1] ?? "")) return readTable(lines, at);
  const end = findEnd(lines, at + 1, (one) => one.trim() && !isStart(one));
  return [html`<p>${inline(lines.slice(at, end).join("\n"))}</p>`, end];
}

const isStart = (line) => [FENCE, HEADING, RULE, ITEM].some((pattern) => pattern.test(line)) || line.startsWith(">");

function findEnd(lines, at, belongs) {
  let end = at;
  while (end < lines.length && belongs(lines[end])) end += 1;
  return end;
}

/** Code up to its closing fence, or to the end while it is still being written. */
function readFence(lines, at) {
  const [, fence, language] = lines[at].match(FENCE);
  const end = findEnd(lines, at + 1, (one) => !(one.trim().startsWith(fence) && !one.trim().slice(fence.length).trim()));
  const text = lines.slice(at + 1, end).join("\n");
  const block = html`<div class="code-block"><div class="row apart small muted"><span>${language}</span><${Copy} text=${text}>Copy<//></div><pre tabindex="0"><code>${text}</code></pre></div>`;
  return [block, end + 1];
}

/** Items of one kind; what is indented below an item belongs to it. */
function readList(lines, at) {
  const [, indent, mark] = lines[at].match(ITEM);
  const isOrdered = /\d/.test(mark);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = lines[end].match(ITEM);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== isOrdered) break;
    const inside = findEnd(lines, end + 1, (one) => (one.trim() ? one.search(/\S/) > indent.length : true) && one !== undefined);
    const rest = trimEnd(lines.slice(end + 1, inside));
    const depth = Math.min(...rest.filter((one) => one.trim()).map((one) => one.search(/\S/)), indent.length + item[2].length + 1);
    const inner = rest.map((one) => one.slice(depth));
    items.push(html`<li>${inline(item[3])}${inner.length > 0 && blocks(inner)}</li>`);
    end += 1 + rest.length;
    while (end < lines.length && !lines[end].trim() && ITEM.test(lines[end + 1] ?? "")) end += 1;
  }
  return [isOrdered ? html`<ol start=${parseInt(mark)}>${items}</ol>` : html`<ul>${items}</ul>`, end];
}

function trimEnd(lines) {
  let end = lines.length;
  while (end && !lines[end - 1].trim()) end -= 1;
  return lines.slice(0, end);
}

function readTable(lines, at) {
  const end = findEnd(lines, at + 2, (one) => one.includes("|"));
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
  const table = html`<div class="scroll" tabindex="0"><table>
    <thead><tr>${cells(lines[at]).map((cell) => html`<th scope="col">${cell}</th>`)}</tr></thead>
    <tbody>${lines.slice(at + 2, end).map((line) => html`<tr>${cells(line).map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
  </table></div>`;
  return [table, end];
}

// Code first: within it nothing else means anything.
const INLINE = [
  [/(`+)(.+?)\1(?!`)/s, ([, , code]) => html`<code>${code.trim()}</code>`],
  [/\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/, ([, text, url]) => html`<a href=${url} target="_blank" rel="noreferrer noopener">${inline(text)}</a>`],
  [/\*\*(\S(?:.*?\S)?)\*\*/s, ([, text]) => html`<strong>${inline(text)}</strong>`],
  [/(?<![\w*])\*(\S(?:[^*]*?\S)?)\*(?![\w*])/s, ([, text]) => html`<em>${inline(text)}</em>`],
  [/(?<!\w)_(\S(?:[^_]*?\S)?)_(?!\w)/s, ([, text]) => html`<em>${inline(text)}</em>`],
  [/~~(\S(?:.*?\S)?)~~/s, ([, text]) => html`<del>${inline(text)}</del>`],
];

function inline(text) {
  const first = INLINE.map(([pattern, make]) => ({ found: text.match(pattern), make }))
    .filter(({ found }) => found)
    .sort((one, other) => one.found.index - other.found.index)[0];
  if (!first) return text;
  const { found, make } = first;
  return [text.slice(0, found.index), make(found), ...[inline(text.slice(found.index + found[0].length))].flat()];
}
