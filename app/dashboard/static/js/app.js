// The frame around every page: navigation, the key, the colours, and which page is shown.

import { html, render, useEffect, useState } from "../vendor/htm-preact.js";
import { forgetKey, get, isKeyDeclined, keepKey, onKeyNeeded, storedKey, Unreachable } from "./api.js";
import { Dialog, Field, Loading, Problem, Toasts, useLoaded } from "./ui.js";

const AGAIN = 3_000;
// Each page is fetched when it is first opened, or soon after the first one.
const PAGES = {
  jobs: () => import("./jobs.js"),
  job: () => import("./job.js"),
  new: () => import("./new_job.js"),
  chat: () => import("./chat.js"),
  playground: () => import("./playground.js"),
  adapters: () => import("./adapters.js"),
  adapter: () => import("./adapter.js"),
  evaluations: () => import("./evaluations.js"),
  evaluation: () => import("./evaluation.js"),
  "new-evaluation": () => import("./new_evaluation.js"),
  datasets: () => import("./datasets.js"),
  models: () => import("./models.js"),
  dataset: () => import("./dataset.js"),
  status: () => import("./status.js"),
};
const LINKS = [
  ["jobs", "Jobs", "M4 6h16M4 12h10M4 18h13"],
  ["chat", "Chat", "M4 5h16v11H9l-5 4z"],
  ["playground", "Playground", "M4 5h7v14H4zM14 5h6v14h-6z"],
  ["adapters", "Adapters", "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9"],
  ["evaluations", "Evaluations", "M4 20V10M10 20V4M16 20v-7M3 20h18"],
  ["datasets", "Datasets", "M4 6c0-4 16-4 16 0s-16 4-16 0v12c0 4 16 4 16 0V6M4 12c0 4 16 4 16 0"],
  ["models", "Models", "M12 3v18M3 12h18M6 6l12 12M18 6L6 18"],
  ["status", "Status", "M3 12h4l3-8 4 16 3-8h4"],
];
const BELONGS_TO = { job: "jobs", new: "jobs", adapter: "adapters", dataset: "datasets", evaluation: "evaluations", "new-evaluation": "evaluations" };

// One of a list is at the address of the list, too, as in the API.
const ONE_OF = { jobs: "job", adapters: "adapter", datasets: "dataset", evaluations: "evaluation" };

/** `#/job/job_x?compare=…` → the page, what it shows, and its parameters. */
function readRoute() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [named, id] = path.split("/").map(decodeURIComponent);
  const page = (id && ONE_OF[named]) || named;
  return { page: page in PAGES ? page : "jobs", id, query: new URLSearchParams(query) };
}

function App() {
  const [route, setRoute] = useState(readRoute);
  const [shown, setShown] = useState(null);
  const [isMissing, setMissing] = useState(false);
  useEffect(() => {
    const change = () => setRoute(readRoute());
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  useEffect(() => {
    let isLate = false;
    PAGES[route.page]().then(
      (module) => isLate || (scrollTo(0, 0), setMissing(false), setShown({ route, View: module.default })),
      () => isLate || (setShown(null), setMissing(true)),
    );
    return () => (isLate = true);
  }, [route]);
  useEffect(() => {
    // While the API answers: so that each page opens also while it does not.
    const timer = setTimeout(() => Object.values(PAGES).forEach((load) => load().catch(() => {})), 1_000);
    return () => clearTimeout(timer);
  }, []);
  useEffect(() => {
    if (!isMissing) return;
    // A browser may remember that a module could not be loaded, until the page is.
    const timer = setInterval(() => get("/health").then(() => location.reload(), () => {}), AGAIN);
    return () => clearInterval(timer);
  }, [isMissing]);
  const box = useBox();
  const current = BELONGS_TO[route.page] ?? route.page;
  return html`
    <a class="skip" href="#main" onClick=${toMain}>Skip to the content</a>
    <div class="shell">
      <header class="side">
        <a class="brand" href="#/jobs"><img src="/dashboard/icon.svg" alt="" />Tunesmith</a>
        <nav class="nav" aria-label="Pages">
          ${LINKS.map(([page, name, path]) => html`
            <a key=${page} href=${`#/${page}`} aria-current=${page === current ? "page" : undefined}>
              <svg viewBox="0 0 24 24" aria-hidden="true"><path d=${path} /></svg>${name}
            </a>`)}
        </nav>
        <div class="side-foot"><${Box} ...${box} /><${ForgetKey} /><${Theme} /></div>
      </header>
      <main class="main" id="main" tabindex="-1">
        <${NoWorker} ...${box} page=${route.page} />
        ${isMissing && html`<${Problem} error=${{ message: "This page can't be loaded: the API does not answer.", hint: "It is loaded as soon as the API answers." }} />`}
        ${shown ? html`<${shown.View} key=${identify(shown.route)} id=${shown.route.id} query=${shown.route.query} />` : !isMissing && html`<${Loading} />`}
      </main>
    </div>
    <${KeyDialog} /><${Toasts} />`;
}

/** Another job, adapter or dataset is another page; the jobs that one is compared with are not. */
const identify = ({ page, id, query }) => (page in BELONGS_TO && id ? `${page}/${id}` : `${page}?${query}`);

function toMain(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

/** The workers that are alive; `isDown` where the API does not answer. */
function useBox() {
  const { value } = useLoaded(async () => {
    try {
      return { workers: (await get("/status")).workers };
    } catch (error) {
      return { isDown: error instanceof Unreachable };
    }
  }, [], 5_000);
  return value ?? {};
}

const Box = ({ isDown }) => (isDown ? html`<div class="state failed small" role="status">No answer</div>` : null);

/** On every page: without a worker nothing that is asked for happens. */
function NoWorker({ workers, page }) {
  if (!workers || page === "status") return null;
  if (!workers.length) return html`<div class="banner" role="status">No worker is alive: jobs wait, and no model answers. Start one with <code>tunesmith up</code> or <code>python -m worker</code>.</div>`;
  if (!workers.some(({ roles }) => roles.includes("train"))) return html`<div class="banner" role="status">No worker trains: jobs wait. Start one with <code>python -m worker --role train</code>.</div>`;
  return null;
}

function ForgetKey() {
  const read = () => (isKeyDeclined() ? "declined" : storedKey() && "stored");
  const [key, setKey] = useState(read);
  useEffect(() => {
    const change = () => setKey(read());
    addEventListener("tunesmith:key", change);
    return () => removeEventListener("tunesmith:key", change);
  }, []);
  if (!key) return null;
  if (key === "declined") return html`<button class="small" type="button" onClick=${() => location.reload()}>Give the key</button>`;
  return html`<button class="plain small" type="button" onClick=${() => (forgetKey(), location.reload())}>Forget the key</button>`;
}

const THEMES = { "": "System colours", light: "Light", dark: "Dark" };

function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? "");
  const next = { "": "light", light: "dark", dark: "" }[theme];
  const change = () => {
    setTheme(next);
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    localStorage.setItem("tunesmith.theme", next);
    dispatchEvent(new CustomEvent("tunesmith:theme"));
  };
  return html`<button class="plain small" type="button" onClick=${change} title="Change the colours">
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d="M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18" /></svg>
    <span>${THEMES[theme]}</span>
  </button>`;
}

/** Asks for the API's key when it wants one. */
function KeyDialog() {
  const [asked, setAsked] = useState(null);
  useEffect(() => {
    onKeyNeeded((message) => new Promise((resolve) => setAsked({ message, resolve })));
  }, []);
  if (!asked) return null;
  const end = (isGiven) => {
    asked.resolve(isGiven);
    setAsked(null);
  };
  const submit = (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    keepKey(form.get("key").trim(), form.get("keep") === "on");
    end(true);
  };
  return html`<${Dialog} title="This API needs a key" onClose=${() => end(false)}>
    <form onSubmit=${submit}>
      ${asked.message && html`<p class="note bad" role="alert">${asked.message}</p>`}
      <${Field} id="key" label="API key" help="It stays in this browser. Keys are made with: tunesmith keys create NAME">
        <input id="key" name="key" type="password" autocomplete="off" required aria-describedby="key-help" />
      <//>
      <label class="check"><input type="checkbox" name="keep" checked /> Keep it when the browser closes</label>
      <div class="row"><button class="primary" type="submit">Use this key</button></div>
    </form>
  <//>`;
}

render(html`<${App} />`, document.getElementById("app"));
