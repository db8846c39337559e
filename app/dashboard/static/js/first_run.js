// The first run: the example data, a job on it, and at its end the playground with a question asked.

import { get, getAll, post, upload } from "./api.js";

const SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct";

/** Starts the example's job, on the smallest base model that is here, and opens its page. */
export async function startFirstRun() {
  const { rows, job } = await get("/dashboard/first-run.json");
  const [dataset, baseModel] = await Promise.all([findRows(rows), chooseBaseModel()]);
  const { id } = await post("/jobs", { ...job, dataset, base_model: baseModel });
  location.hash = `#/job/${id}?then=playground`;
}

/** Where the first run ends. */
export async function openPlayground(adapter) {
  const { questions } = await get("/dashboard/first-run.json");
  location.hash = `#/playground?${new URLSearchParams({ adapter, ask: questions[0] })}`;
}

async function findRows(name) {
  const known = (await getAll("/datasets")).find((dataset) => dataset.name === name && dataset.state === "ready");
  if (known) return known.id;
  const form = new FormData();
  form.set("file", new File([await (await fetch(`/dashboard/${name}`)).blob()], name));
  return (await upload("/datasets", form, () => {})).id;
}

async function chooseBaseModel() {
  const { data, any_hub_model: anyModel } = await get("/models");
  const here = data.filter(({ state }) => state !== "on_hub");
  const smallest = here.sort((one, other) => (one.size_bytes ?? Infinity) - (other.size_bytes ?? Infinity))[0];
  return smallest?.name ?? (anyModel ? SMALL : data[0]?.name) ?? SMALL;
}
