/** The calls of one client, and a report of each: a line of JSON on the standard output. As `python/calls.py`. */

import assert from "node:assert/strict";

export const url = process.env.SERVICE_URL; // with /v1
export const model = process.env.SERVICE_MODEL;
export const question = "What is the weather in Oslo, and how many people live there?";
// What the model was trained to say in the end, after a call of each function.
export const answer = "It rains in Oslo, where 700000 people live.";
export const cities = ["Oslo", "Lima", "Kyoto"];
export const tooLong = "word ".repeat(20_000);

const report = console.log;
// What clients print is no part of the report.
console.log = console.info = console.error;

/** Make the calls in their order and report each. An error ends its own call only. */
export async function runCalls(calls) {
  for (const [call, run] of Object.entries(calls)) {
    const began = Date.now();
    let error = null;
    try {
      await run();
    } catch (caught) {
      error = `${caught?.stack ?? caught}\n${caught?.message ?? ""}`;
    }
    report(JSON.stringify({ call, seconds: (Date.now() - began) / 1000, error }));
  }
}

/** Two functions for models to call, and the names of those that were called. */
export class Toolbox {
  called = [];

  getWeather = async ({ city }) => this.#note("get_weather", city, `It rains in ${city}.`);

  getPopulation = async ({ city }) => this.#note("get_population", city, "700000");

  /** Both functions were called, and the answer is that of the model's training. */
  check(text) {
    assert.deepEqual(this.called, ["get_weather", "get_population"]);
    assert.equal(text, answer);
  }

  #note(name, city, result) {
    if (!cities.includes(city)) throw new Error(`${city} is not one of the cities`);
    this.called.push(name);
    return result;
  }
}
