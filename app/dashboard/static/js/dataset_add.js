// Adds a dataset: a file that is dropped or chosen, or one of the Hub by its name.

import { useState } from "../vendor/htm-preact.js";
import { post, upload } from "./api.js";
import { inspect, MappingDialog } from "./dataset_mapping.js";
import { percent, plural } from "./format.js";
import { Action, Field, html, Problem, Tabs, tell } from "./ui.js";

const START = 1 << 20;

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
  // The file that is being added, why it was refused, and the choices made for it so far.
  const [pending, setPending] = useState(null);
  const [isMapping, setMapping] = useState(false);
  const [asksFirst, setAsksFirst] = useState(false);
  const take = async (file, choices = {}) => {
    setShare(0);
    const form = new FormData();
    for (const [name, value] of Object.entries(choices)) form.set(name, value);
    form.set("file", file);
    try {
      const dataset = await upload("/datasets", form, setShare);
      tell(`${dataset.name}: ${plural(dataset.rows, "row")}${dataset.problem_count ? `, ${dataset.problem_count} left out` : ""}.`, "good");
      setMapping(false);
      setPending(null);
      onAdded(dataset);
    } catch (error) {
      setPending((before) => ({ error, file, choices, sample: error.sample ?? (before?.file === file ? before.sample : null) }));
      if (error.sample) setMapping(true);
    } finally {
      setShare(null);
    }
  };
  const look = async (file) => {
    setShare(1);
    try {
      setPending({ file, error: null, choices: {}, sample: await inspectStart(file) });
      setMapping(true);
    } catch (error) {
      setPending({ file, error, choices: {} });
    } finally {
      setShare(null);
    }
  };
  const begin = (file) => {
    if (!file) return;
    setPending(null);
    (asksFirst ? look : take)(file);
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    begin(event.dataTransfer.files[0]);
  };
  const over = (event) => {
    event.preventDefault();
    setOver(true);
  };
  const chosen = ({ target }) => {
    begin(target.files[0]);
    target.value = "";
  };
  const again = (choices) => take(pending.file, { ...pending.choices, ...choices });
  const isMapped = isMapping && pending?.sample;
  return html`<div class="stack">
    <label class=${`drop ${isOver ? "over" : ""}`} onDragOver=${over} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <input class="visually-hidden" type="file" accept=".jsonl,.json,.csv,.tsv,.parquet,.gz,.txt" onChange=${chosen} aria-describedby="drop-help" />
      <strong>Drop a file here, or choose one</strong>
      <span class="small muted" id="drop-help">JSON lines, JSON, CSV, TSV or Parquet, gzipped or not. Where its columns are not known, you are asked what they mean.</span>
      ${share != null && !isMapped && html`<progress value=${share} max="1" aria-label="Upload"></progress><span class="small" role="status">${share < 1 ? percent(share) : "Reading the rows…"}</span>`}
    </label>
    <label class="check small"><input type="checkbox" checked=${asksFirst} onChange=${({ target }) => setAsksFirst(target.checked)} />Choose the columns before the upload</label>
    ${isMapped && html`<${MappingDialog} key=${pending.file.name} file=${pending.file} sample=${pending.sample} error=${pending.error?.sample ? pending.error : null} share=${share} onUpload=${again} onClose=${() => setMapping(false)}>
      ${pending.error && !pending.error.sample && html`<${Problems} error=${pending.error} file=${pending.file} onAgain=${again} />`}
    <//>`}
    ${pending?.error && !isMapped && html`<${Problems} error=${pending.error} file=${pending.file} onAgain=${again} onMap=${pending.sample && (() => setMapping(true))} />`}
  </div>`;
}

/** The first records of a file; of text, no more than its beginning is sent. */
async function inspectStart(file) {
  if (file.size > START && !file.name.endsWith(".parquet")) {
    const start = await inspect(file.slice(0, START)).catch(() => null);
    if (start && !start.problems.length) return start;
  }
  return inspect(file);
}

/** Why a file was refused, and what can be done; `onMap` opens the choice of columns. */
function Problems({ error, file, onAgain, onMap }) {
  const problems = error.problems ?? [];
  return html`<div class="stack tight">
    <${Problem} error=${onMap ? { message: error.message } : error} />
    ${problems.length > 0 && html`
      <div class="scroll" tabindex="0" role="group" aria-label="Lines that can't be used"><table>
        <caption class="visually-hidden">${`What is wrong in ${file.name}`}</caption>
        <thead><tr><th scope="col">Line</th><th scope="col">What is wrong</th></tr></thead>
        <tbody>${problems.map(({ line, message }, index) => html`<tr key=${index}><td class="numbers">${line}</td><td class="wrap">${message}</td></tr>`)}</tbody>
      </table></div>
      <div><${Action} onClick=${() => onAgain({ on_problem: "skip" })}>Upload the other rows<//></div>`}
    ${error.unusedFields?.length > 0 && html`<div><${Action} onClick=${() => onAgain({ on_unused: "ignore" })}>Upload without these fields<//></div>`}
    ${onMap && html`<div><button type="button" class="primary" onClick=${onMap}>${`Choose the columns of ${file.name}`}</button></div>`}
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
