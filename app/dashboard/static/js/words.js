// Messages of the API in the words of these pages: pages and buttons in place of calls and fields of HTTP.

const PAGES = { jobs: "Jobs", datasets: "Datasets", adapters: "Adapters", aliases: "Adapters", exports: "Adapters", evaluations: "Evaluations", evals: "Evaluations", models: "Models", files: "Datasets", webhooks: "API (/docs)", ready: "Status", status: "Status", usage: "Status", keys: "Status" };
const ONE = { jobs: "job", datasets: "dataset", adapters: "adapter", aliases: "alias", exports: "export", evaluations: "evaluation", evals: "eval", webhooks: "webhook", keys: "key" };
const CREATING = { jobs: "“New job”", datasets: "“Add a dataset”", exports: "“Export” on the adapter's page", evaluations: "“New evaluation”" };
const FIELDS = [
  [/\bon_problem=skip\b/g, "“Upload the other rows”"],
  [/\bon_unused=ignore\b/g, "“Upload without these fields”"],
  [/\bcolumn_map=\{[^}]*\}/g, "a mapping of its columns"],
];

/** `POST /jobs/job_1/retry goes on.` → `“Retry” on the page of job job_1 goes on.` */
export function inWords(text) {
  if (!text) return text;
  const named = FIELDS.reduce((found, [field, words]) => found.replace(field, words), text);
  return named.replace(/\b(GET|PUT|POST|DELETE) \/([\w{}/]*\w}?)/g, (call, method, path, place, whole) => {
    const said = say(method, path.replace(/^v1\//, "").split("/"));
    return said && /(^|[.:!?] )$/.test(whole.slice(0, place)) ? said[0].toUpperCase() + said.slice(1) : (said ?? call);
  });
}

function say(method, [kind, id, verb]) {
  if (!PAGES[kind]) return null;
  const isNamed = id && !id.startsWith("{");
  const where = isNamed ? ` of ${ONE[kind]} ${id}` : "";
  if (kind === "models" && id === "downloads") return method === "POST" ? "“Download” on the page Models" : "the page Models";
  if (kind === "aliases" && method === "GET") return "the page Adapters";
  if (kind === "aliases" && verb === "rollback") return `“Roll back”${where}`;
  if (method === "PUT") return `“Point elsewhere”${where}`;
  if (method === "DELETE") return `“Delete”${where}`;
  if (method === "GET") return id && !isNamed ? `the page of the ${ONE[kind]}` : `the page ${id ? where.trim() : PAGES[kind]}`;
  if (!id) return CREATING[kind] ?? null;
  if (verb in CREATING) return CREATING[verb];
  return verb ? `“${verb[0].toUpperCase()}${verb.slice(1)}”${where}` : null;
}
