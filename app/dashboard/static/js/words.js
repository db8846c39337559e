// Messages of the API in the words of these pages: pages and buttons in place of calls and fields of HTTP.

const PAGES = { jobs: "Jobs", datasets: "Datasets", adapters: "Adapters", exports: "Adapters", models: "Models", files: "Datasets", webhooks: "API (/docs)", ready: "Status", status: "Status" };
const ONE = { jobs: "job", datasets: "dataset", adapters: "adapter", exports: "export", webhooks: "webhook" };
const CREATING = { jobs: "“New job”", datasets: "“Add a dataset”", exports: "“Export” on the adapter's page" };
const FIELDS = [
  [/\bon_problem=skip\b/g, "“Upload the other rows”"],
  [/\bon_unused=ignore\b/g, "“Upload without these fields”"],
  [/\bcolumn_map=\{[^}]*\}/g, "a mapping of its columns"],
];

/** `POST /jobs/job_1/retry goes on.` → `“Retry” on the page of job job_1 goes on.` */
export function inWords(text) {
  if (!text) return text;
  const named = FIELDS.reduce((found, [field, words]) => found.replace(field, words), text);
  return named.replace(/\b(GET|POST|DELETE) \/([\w{}/]*\w}?)/g, (call, method, path, place, whole) => {
    const said = say(method, path.replace(/^v1\//, "").split("/"));
    return said && /(^|[.:!?] )$/.test(whole.slice(0, place)) ? said[0].toUpperCase() + said.slice(1) : (said ?? call);
  });
}

function say(method, [kind, id, verb]) {
  if (!PAGES[kind]) return null;
  const isNamed = id && !id.startsWith("{");
  const where = isNamed ? ` of ${ONE[kind]} ${id}` : "";
  if (kind === "models" && id === "downloads") return method === "POST" ? "“Download” on the page Models" : "the page Models";
  if (method === "DELETE") return `“Delete”${where}`;
  if (method === "GET") return id && !isNamed ? `the page of the ${ONE[kind]}` : `the page ${id ? where.trim() : PAGES[kind]}`;
  if (!id) return CREATING[kind] ?? null;
  if (verb in CREATING) return CREATING[verb];
  return verb ? `“${verb[0].toUpperCase()}${verb.slice(1)}”${where}` : null;
}
