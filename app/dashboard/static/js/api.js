// A client of the API over HTTP, and the key that it may need. The key is stored in this browser alone.

const KEY = "tunesmith.key";
let askForKey = async () => null;
let asking = null;
let isDeclined = false;

/** What went wrong, in the API's own words. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body?.message ?? `The API answered with status ${status}.`);
    this.status = status;
    this.code = body?.code ?? null;
    this.param = body?.param ?? null;
    this.hint = body?.hint ?? null;
    this.problems = body?.problems ?? null;
    this.unusedFields = body?.unused_fields ?? null;
    this.sample = body?.sample ?? null;
  }
}

/** The API can't be reached at all. */
export class Unreachable extends Error {
  constructor() {
    super("The API does not answer.");
    this.hint = "It may be starting again; this page goes on trying.";
  }
}

/** Whether the same request may succeed in a while: the API or an engine starts, or the state of a thing changes. */
export const mayPass = (error) =>
  error instanceof Unreachable || error.status >= 500 || error.status === 429 || error.status === 409;

export const storedKey = () => read(localStorage) ?? read(sessionStorage);

export function keepKey(key, forLater) {
  forgetKey();
  (forLater ? localStorage : sessionStorage).setItem(KEY, key);
  isDeclined = false;
  announceKey();
}

export function forgetKey() {
  localStorage.removeItem(KEY);
  sessionStorage.removeItem(KEY);
  announceKey();
}

/** Sets the function that asks for a key: it returns a promise of true once a key was given, else of false. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

function read(storage) {
  try {
    return storage.getItem(KEY);
  } catch {
    return null;
  }
}

function announceKey() {
  dispatchEvent(new CustomEvent("tunesmith:key"));
}

/** A response that is no error. Asks for a key where one is missing, and tries again with it. */
export async function send(path, { headers = {}, ...options } = {}) {
  for (;;) {
    const key = storedKey();
    const response = await reach(path, { ...options, headers: { ...headers, ...bearer(key) } });
    if (response.ok) return response;
    const error = new ApiError(response.status, await readError(response));
    if (response.status !== 401) throw error;
    // Another request may have got a key meanwhile.
    if (storedKey() !== key) continue;
    if (!(await needKey(key ? error.message : ""))) throw error;
  }
}

/** The JSON at a path. */
export async function get(path, options) {
  return (await send(path, options)).json();
}

/** POST JSON. Returns the response's JSON. */
export async function post(path, body, { headers = {}, ...options } = {}) {
  const content = body === undefined ? {} : { body: JSON.stringify(body) };
  const type = body === undefined ? {} : { "content-type": "application/json" };
  const response = await send(path, { method: "POST", headers: { ...type, ...headers }, ...content, ...options });
  return response.status === 204 ? null : response.json();
}

/** PATCH JSON. Returns the response's JSON. */
export async function patch(path, body) {
  return (await send(path, { method: "PATCH", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();
}

/** PUT JSON. Returns the response's JSON. */
export async function put(path, body, { headers = {} } = {}) {
  const type = { "content-type": "application/json" };
  return (await send(path, { method: "PUT", headers: { ...type, ...headers }, body: JSON.stringify(body) })).json();
}

export const remove = (path) => send(path, { method: "DELETE" });

export const bearer = (key) => (key ? { authorization: `Bearer ${key}` } : {});

/** Every item of a list, page by page. */
export async function getAll(path, most = 1000, params = "") {
  const found = [];
  let after = null;
  do {
    const cursor = after ? `&after=${encodeURIComponent(after)}` : "";
    const page = await get(`${path}?limit=200${params}${cursor}`);
    found.push(...page.data);
    after = page.next;
  } while (after && found.length < most);
  return found;
}

/** Save the response of a path as a file. A link can't carry a key, so with a key it is fetched first. */
export async function download(path, name) {
  if (!storedKey()) return saveLink(path, name);
  const blob = await (await send(path)).blob();
  const url = URL.createObjectURL(blob);
  saveLink(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Save a text as a file. */
export function saveText(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  saveLink(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function saveLink(href, name) {
  const link = document.createElement("a");
  link.href = href;
  link.download = name;
  link.click();
}

/** POST a form with a callback for its upload progress, which `fetch` does not report. */
export async function upload(path, form, onProgress) {
  for (;;) {
    const key = storedKey();
    const request = await sendForm(path, form, key, onProgress);
    if (request.status >= 200 && request.status < 300) return JSON.parse(request.responseText);
    const error = new ApiError(request.status, parse(request.responseText)?.error);
    if (request.status !== 401 || !(await needKey(key ? error.message : ""))) throw error;
  }
}

function sendForm(path, form, key, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    if (key) request.setRequestHeader("authorization", `Bearer ${key}`);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => resolve(request);
    request.onerror = () => reject(new Unreachable());
    request.send(form);
  });
}

/** Ask for a key once for all waiting requests; not again after the dialog was closed. */
function needKey(message) {
  if (isDeclined) return false;
  asking ??= askForKey(message).then((isGiven) => {
    asking = null;
    isDeclined = !isGiven;
    announceKey();
    return isGiven;
  });
  return asking;
}

export const isKeyDeclined = () => isDeclined;

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
}

async function readError(response) {
  return parse(await response.text())?.error;
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
