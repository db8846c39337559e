// Adds a dataset: a file that is dropped or chosen, or one of the Hub by its name.

import { useState } from "../vendor/htm-preact.js";
import { post, upload } from "./api.js";
import { percent, plural } from "./format.js";
import { Action, Field, html, Problem, Tabs, tell } from "./ui.js";

const COLUMNS = ["messages", "prompt", "completion", "instruction", "output", "text"];

export function AddDataset({ onAdded }) {
  const [source, setSource] = useState("file");
  return html`<div class="stack">
    <div><${Tabs} label="Where the rows are" value=${source} options=${[["file", "A file"], ["hub", "Hugging Face Hub"]]} onChange=${setSource} /></div>
    ${source === "file" ? html`<${FromFile} onAdded=${onAdded} />` : html`<${FromHub} onAdded=${onAdded} />`}
  </div>`;
}

function FromFile({ onAdded }) {
  const [isOver, setOver] = useState(false);
  const [share, setShare] = useState(null);
  const [failure, setFailure] = useState(null);
  const [columns, setColumns] = useState({});
  const take = async (file, choices = {}) => {
    if (!file) return;
    setFailure(null);
    setShare(0);
    const form = new FormData();
    for (const [name, value] of Object.entries(choices)) form.set(name, value);
    const named = Object.entries(columns).filter(([, own]) => own.trim()).map(([known, own]) => [known, own.trim()]);
    if (named.length) form.set("column_map", JSON.stringify(Object.fromEntries(named)));
    form.set("file", file);
    try {
      const dataset = await upload("/datasets", form, setShare);
      tell(`${dataset.name}: ${plural(dataset.rows, "row")}${dataset.problem_count ? `, ${dataset.problem_count} left out` : ""}.`, "good");
      onAdded(dataset);
    } catch (error) {
      setFailure({ error, file, choices });
    } finally {
      setShare(null);
    }
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer.files[0]);
  };
  const over = (event) => {
    event.preventDefault();
    setOver(true);
  };
  const chosen = ({ target }) => {
    take(target.files[0]);
    target.value = "";
  };
  return html`<div class="stack">
    <label class=${`drop ${isOver ? "over" : ""}`} onDragOver=${over} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <input class="visually-hidden" type="file" accept=".jsonl,.json,.csv,.tsv,.parquet,.gz,.txt" onChange=${chosen} aria-describedby="drop-help" />
      <strong>Drop a file here, or choose one</strong>
      <span class="small muted" id="drop-help">JSON lines, JSON, CSV, TSV or Parquet, gzipped or not. Its columns say its format: messages, or prompt and completion, or text, or instruction and output.</span>
      ${share != null && html`<progress value=${share} max="1" aria-label="Upload"></progress><span class="small" role="status">${share < 1 ? percent(share) : "Reading the rows…"}</span>`}
    </label>
    <details>
      <summary class="small">Its columns have other names</summary>
      <div class="fields">${COLUMNS.map((name) => html`<${Field} key=${name} id=${`column-${name}`} label=${`Column for ${name}`}>
        <input id=${`column-${name}`} value=${columns[name] ?? ""} autocomplete="off" onInput=${({ target }) => setColumns({ ...columns, [name]: target.value })} />
      <//>`)}</div>
    </details>
    ${failure && html`<${Problems} ...${failure} onAgain=${(choice) => take(failure.file, { ...failure.choices, ...choice })} />`}
  </div>`;
}

function Problems({ error, file, onAgain }) {
  const problems = error.problems ?? [];
  const unused = error.unusedFields ?? [];
  return html`<div class="stack tight">
    <${Problem} error=${error} />
    ${problems.length > 0 && html`
      <div class="scroll" tabindex="0" role="group" aria-label="Lines that can't be used"><table>
        <caption class="visually-hidden">${`What is wrong in ${file.name}`}</caption>
        <thead><tr><th scope="col">Line</th><th scope="col">What is wrong</th></tr></thead>
        <tbody>${problems.map(({ line, message }, index) => html`<tr key=${index}><td class="numbers">${line}</td><td class="wrap">${message}</td></tr>`)}</tbody>
      </table></div>
      <div><${Action} onClick=${() => onAgain({ on_problem: "skip" })}>Upload the other rows<//></div>`}
    ${unused.length > 0 && html`
      <div class="scroll" tabindex="0" role="group" aria-label="Fields that would not be used"><table>
        <caption class="visually-hidden">${`Fields of ${file.name} that would not be used`}</caption>
        <thead><tr><th scope="col">Field</th><th scope="col">Rows</th><th scope="col">First lines</th></tr></thead>
        <tbody>${unused.map(({ field, rows, lines }) => html`<tr key=${field}><td class="wrap mono">${field}</td><td class="numbers">${rows}</td><td class="wrap">${lines.join(", ")}</td></tr>`)}</tbody>
      </table></div>
      <div><${Action} onClick=${() => onAgain({ on_unused: "ignore" })}>Upload without these fields<//></div>`}
  </div>`;
}

function FromHub({ onAdded }) {
  const [values, setValues] = useState({ hub_dataset: "", config: "", split: "train", revision: "" });
  const [error, setError] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    setError(null);
    try {
      const given = Object.entries(values).filter(([, value]) => value.trim());
      onAdded(await post("/datasets", Object.fromEntries(given)));
    } catch (found) {
      setError(found);
    }
  };
  const input = (name, label, help, rest) => html`<${Field} id=${`hub-${name}`} label=${label} help=${help}>
    <input id=${`hub-${name}`} aria-describedby=${help ? `hub-${name}-help` : undefined} ...${rest} value=${values[name]} autocomplete="off" spellcheck="false" onInput=${({ target }) => setValues({ ...values, [name]: target.value })} />
  <//>`;
  return html`<form class="stack" onSubmit=${submit}>
    <div class="fields">
      ${input("hub_dataset", "Name", "As on the Hub, for example HuggingFaceH4/no_robots.", { required: true, placeholder: "owner/name" })}
      ${input("split", "Split")} ${input("config", "Configuration", "Empty: the default one.")} ${input("revision", "Revision", "Empty: the newest.")}
    </div>
    <${Problem} error=${error} />
    <div><button type="submit">Fetch it</button></div>
  </form>`;
}
