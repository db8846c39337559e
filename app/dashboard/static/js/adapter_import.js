// Takes in an adapter that was trained elsewhere: an archive that is dropped or chosen.

import { useState } from "../vendor/htm-preact.js";
import { get, upload } from "./api.js";
import { percent } from "./format.js";
import { Field, html, Problem, tell, useLoaded } from "./ui.js";

export function ImportAdapter({ onAdded }) {
  const { value: models } = useLoaded(() => get("/models"), []);
  const [form, setForm] = useState({ name: "", baseModel: "", bits: "" });
  const [isOver, setOver] = useState(false);
  const [share, setShare] = useState(null);
  const [failure, setFailure] = useState(null);
  const set = (name) => ({ target }) => setForm({ ...form, [name]: target.value });
  const take = async (file) => {
    if (!file) return;
    setFailure(null);
    setShare(0);
    const body = new FormData();
    if (form.name.trim()) body.set("name", form.name.trim());
    if (form.baseModel.trim()) body.set("base_model", form.baseModel.trim());
    if (form.bits) body.set("quantization", JSON.stringify({ load_in_4bit: form.bits === "4" }));
    body.set("file", file);
    try {
      const adapter = await upload("/adapters", body, setShare);
      tell(`${adapter.name} was uploaded; the engine tries it now.`, "good");
      await onAdded();
    } catch (error) {
      setFailure(error);
    } finally {
      setShare(null);
    }
  };
  const over = (event) => {
    event.preventDefault();
    setOver(true);
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer.files[0]);
  };
  const chosen = ({ target }) => {
    take(target.files[0]);
    target.value = "";
  };
  return html`<div class="stack">
    <div class="fields">
      <${Field} id="import-name" label="Name" help="Empty: the file's."><input id="import-name" aria-describedby="import-name-help" autocomplete="off" spellcheck="false" value=${form.name} onInput=${set("name")} /><//>
      <${Field} id="import-base" label="Base model" help="Empty: the one that its adapter_config.json names.">
        <input id="import-base" list="import-bases" aria-describedby="import-base-help" autocomplete="off" spellcheck="false" value=${form.baseModel} onInput=${set("baseModel")} />
        <datalist id="import-bases">${models?.data.map(({ name }) => html`<option key=${name} value=${name} />`)}</datalist>
      <//>
      <${Field} id="import-bits" label="Trained on base weights of"><select id="import-bits" value=${form.bits} onChange=${set("bits")}>
        <option value="">as its files say, or 16 bits</option><option value="4">4 bits</option><option value="16">16 bits</option>
      </select><//>
    </div>
    <label class=${`drop ${isOver ? "over" : ""}`} onDragOver=${over} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <input class="visually-hidden" type="file" accept=".zip,.tar,.gz,.tgz" onChange=${chosen} aria-describedby="import-help" />
      <strong>Drop an adapter here, or choose one</strong>
      <span class="small muted" id="import-help">The folder that PEFT's save_pretrained wrote, as a zip or a tar. Safetensors alone.</span>
      ${share != null && html`<progress value=${share} max="1" aria-label="Upload"></progress><span class="small" role="status">${share < 1 ? percent(share) : "Checking the files…"}</span>`}
    </label>
    <${Problem} error=${failure} />
  </div>`;
}
