// Server-sent events over fetch: an EventSource can't carry a key.

import { mayPass, send } from "./api.js";

const FIRST_WAIT = 500;
const MAX_WAIT = 5_000;
// The API sends a comment every 15 seconds: a connection that is silent for longer is dead.
const SILENCE = 40_000;

/** The events of a response, `{ id, event, data }`, as they come. */
export async function* readEvents(response, onBytes = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    onBytes();
    rest = (rest + value).replaceAll("\r\n", "\n");
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parseBlock(block);
      if (event.data) yield event;
    }
  }
}

function parseBlock(block) {
  const event = { id: null, event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 1) continue;
    const name = line.slice(0, colon);
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") event.data += (event.data && "\n") + value;
    else if (name in event) event[name] = value;
  }
  return event;
}

/**
 * Every event of a job once and in order until it has ended; a broken connection is opened again.
 * `onEvents(list)` is called with events that arrived together, `onConnection(isThere)` when the connection
 * breaks or returns.
 */
export function followJob(jobId, { onEvents, onConnection, onEnd, onError }) {
  const stop = new AbortController();
  run().catch((error) => stop.signal.aborted || onError(error));
  return () => stop.abort();

  async function run() {
    let lastSeq = 0;
    let wait = FIRST_WAIT;
    while (!stop.signal.aborted) {
      try {
        const before = lastSeq;
        const isOver = await readOnce();
        onConnection(true);
        if (isOver) return onEnd();
        if (lastSeq > before) wait = FIRST_WAIT;
      } catch (error) {
        if (stop.signal.aborted) return;
        if (!isPassing(error)) throw error;
        onConnection(false);
      }
      await pause(wait, stop.signal);
      wait = Math.min(wait * 2, MAX_WAIT);
    }

    /** One connection. Returns whether the job has ended. */
    async function readOnce() {
      const silence = new AbortController();
      let timer = setTimeout(() => silence.abort(), SILENCE);
      const touch = () => {
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE);
      };
      try {
        const response = await send(`/jobs/${encodeURIComponent(jobId)}/events`, {
          headers: { accept: "text/event-stream", "last-event-id": String(lastSeq) },
          signal: AbortSignal.any([stop.signal, silence.signal]),
        });
        if (response.status === 204) return true;
        onConnection(true);
        const gather = makeBatch(onEvents);
        for await (const { data } of readEvents(response, touch)) {
          const event = JSON.parse(data);
          if (event.seq <= lastSeq) continue;
          // A gap: connect again after the last event without one.
          if (event.seq !== lastSeq + 1) return false;
          lastSeq = event.seq;
          gather(event);
        }
        return false;
      } finally {
        clearTimeout(timer);
      }
    }
  }
}

const isPassing = (error) => error.name === "AbortError" || error instanceof TypeError || (mayPass(error) && error.status !== 409);

/** Pass events on in one call a frame: a long history is thousands of events at once. */
function makeBatch(onEvents) {
  let waiting = [];
  return (event) => {
    waiting.push(event);
    if (waiting.length > 1) return;
    setTimeout(() => {
      const events = waiting;
      waiting = [];
      onEvents(events);
    }, 30);
  };
}

export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
