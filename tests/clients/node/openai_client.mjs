/** OpenAI's client for Node. */

import assert from "node:assert/strict";
import OpenAI, { APIError, NotFoundError } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { Toolbox, cities, model, question, runCalls, tooLong, url } from "./calls.mjs";

const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const short = { model, messages, temperature: 0, max_completion_tokens: 16 };
const long = { ...short, max_completion_tokens: 300 };
const City = z.object({ name: z.enum(cities), size: z.int().min(0).max(99) });
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: cities } },
  required: ["city"],
  additionalProperties: false,
};
const named = (name) => ({ type: "function", function: { name } });

function runnableTools(toolbox) {
  return [
    ["get_weather", toolbox.getWeather],
    ["get_population", toolbox.getPopulation],
  ].map(([name, run]) => ({
    type: "function",
    function: { name, description: name, parameters, parse: JSON.parse, function: run },
  }));
}

async function errorOf(promise) {
  try {
    await promise;
  } catch (error) {
    assert(error instanceof APIError, error);
    return error;
  }
  throw new Error("no error");
}

await runCalls({
  async models() {
    const names = [];
    for await (const one of client.models.list()) names.push(one.id);
    assert(names.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
  },

  async chat() {
    const completion = await client.chat.completions.create(short);
    assert(completion.choices[0].message.content);
    assert(completion.usage.completion_tokens <= 16);
  },

  async stream() {
    const whole = (await client.chat.completions.create(short)).choices[0].message.content;
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...short, stream: true }))
      text += chunk.choices[0]?.delta.content ?? "";
    assert.equal(text, whole);
  },

  async structured() {
    const completion = await client.chat.completions.parse({
      ...long,
      response_format: zodResponseFormat(City, "city"),
    });
    City.parse(completion.choices[0].message.parsed);
  },

  async tools() {
    const tools = runnableTools(new Toolbox());
    const { choices } = await client.chat.completions.create({ ...long, tools, tool_choice: "required" });
    assert.equal(choices[0].finish_reason, "tool_calls");
    assert(cities.includes(JSON.parse(choices[0].message.tool_calls[0].function.arguments).city));
  },

  async tools_stream() {
    const tools = runnableTools(new Toolbox());
    const events = client.chat.completions.stream({ ...long, tools, tool_choice: named("get_weather") });
    const [called] = (await events.finalChatCompletion()).choices[0].message.tool_calls;
    assert.equal(called.function.name, "get_weather");
    assert(cities.includes(JSON.parse(called.function.arguments).city));
  },

  /** The client's own loop. */
  async agent() {
    for (const stream of [false, true]) {
      const toolbox = new Toolbox();
      const runner = client.chat.completions.runTools({ ...long, stream, tools: runnableTools(toolbox) });
      toolbox.check(await runner.finalContent());
    }
  },

  async responses() {
    const asked = { model, input: question, temperature: 0, max_output_tokens: 16 };
    const response = await client.responses.create(asked);
    assert(response.output_text);
    assert.equal((await client.responses.retrieve(response.id)).output_text, response.output_text);
    const following = await client.responses.create({ ...asked, previous_response_id: response.id });
    assert(following.usage.input_tokens > response.usage.input_tokens);
    await client.responses.delete(response.id);
    assert((await errorOf(client.responses.retrieve(response.id))) instanceof NotFoundError);
  },

  async responses_stream() {
    const events = client.responses.stream({ model, input: question, temperature: 0, max_output_tokens: 16 });
    let text = "";
    for await (const event of events) if (event.type === "response.output_text.delta") text += event.delta;
    assert(text);
    assert.equal(text, (await events.finalResponse()).output_text);
  },

  async responses_structured() {
    const response = await client.responses.parse({
      model,
      input: question,
      max_output_tokens: 300,
      text: { format: zodTextFormat(City, "city") },
    });
    City.parse(response.output_parsed);
  },

  /** Nothing is stored: each turn is sent with all items before it. */
  async responses_agent() {
    const toolbox = new Toolbox();
    const run = { get_weather: toolbox.getWeather, get_population: toolbox.getPopulation };
    const tools = Object.keys(run).map((name) => ({ type: "function", name, parameters, strict: true }));
    const input = [...messages];
    for (;;) {
      const response = await client.responses.create({
        model,
        input,
        tools,
        store: false,
        temperature: 0,
        max_output_tokens: 300,
      });
      const calls = response.output.filter((item) => item.type === "function_call");
      if (calls.length === 0) return toolbox.check(response.output_text);
      input.push(...response.output);
      for (const { call_id, name, arguments: text } of calls)
        input.push({ type: "function_call_output", call_id, output: await run[name](JSON.parse(text)) });
    }
  },

  async embeddings() {
    const { data } = await client.embeddings.create({ model, input: ["Oslo", "Lima"] });
    const squares = data[0].embedding.reduce((sum, value) => sum + value * value, 0);
    assert(Math.abs(squares - 1) < 1e-3);
    assert.equal(data[0].embedding.length, data[1].embedding.length);
  },

  async errors() {
    const long = [{ role: "user", content: tooLong }];
    const overflow = await errorOf(client.chat.completions.create({ ...short, messages: long }));
    assert.equal(overflow.code, "context_length_exceeded");
    const unknown = await errorOf(client.chat.completions.create({ ...short, model: "no-such-model" }));
    assert(unknown instanceof NotFoundError);
  },
});
