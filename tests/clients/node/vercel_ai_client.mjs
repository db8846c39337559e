/** Vercel's AI SDK: `@ai-sdk/openai-compatible`, and `@ai-sdk/openai`, whose models use Responses by default. */

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { Toolbox, cities, model, question, runCalls, tooLong, url } from "./calls.mjs";

const compatible = createOpenAICompatible({
  name: "tunesmith",
  baseURL: url,
  apiKey: "none",
  supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: url, apiKey: "none" });
const chatModels = [compatible(model), openai.chat(model)];
const short = { prompt: question, temperature: 0, maxOutputTokens: 16, maxRetries: 0 };
const long = { ...short, maxOutputTokens: 300 };
const City = z.object({ name: z.enum(cities), size: z.int().min(0).max(99) });
const inputSchema = z.object({ city: z.enum(cities) });

function toolsOf(toolbox) {
  return {
    get_weather: tool({ description: "The weather.", inputSchema, execute: toolbox.getWeather }),
    get_population: tool({ description: "The population.", inputSchema, execute: toolbox.getPopulation }),
  };
}

async function checkStream(model) {
  const { text } = await generateText({ ...short, model });
  let streamed = "";
  for await (const delta of streamText({ ...short, model }).textStream) streamed += delta;
  assert(text);
  assert.equal(streamed, text);
}

async function checkObject(model) {
  const { output } = await generateText({ ...long, model, output: Output.object({ schema: City }) });
  City.parse(output);
}

async function checkAgent(model) {
  const toolbox = new Toolbox();
  const asked = { ...long, model, tools: toolsOf(toolbox), stopWhen: stepCountIs(4) };
  toolbox.check((await generateText(asked)).text);
  toolbox.called = [];
  toolbox.check(await streamText(asked).text);
}

async function checkTools(model) {
  const toolbox = new Toolbox();
  const asked = { ...long, model, tools: toolsOf(toolbox), toolChoice: "required" };
  const { toolCalls } = await generateText(asked);
  const streamed = await streamText(asked).toolCalls;
  assert.equal(toolbox.called.length, toolCalls.length + streamed.length);
  assert(toolbox.called.length >= 2);
}

const eachChatModel = (check) => async () => {
  for (const one of chatModels) await check(one);
};

await runCalls({
  chat: eachChatModel(async (model) => assert((await generateText({ ...short, model })).text)),
  stream: eachChatModel(checkStream),
  structured: eachChatModel(checkObject),
  tools: eachChatModel(checkTools),
  agent: eachChatModel(checkAgent),
  responses: () => checkStream(openai(model)),
  responses_structured: () => checkObject(openai(model)),
  responses_tools: () => checkTools(openai(model)),
  responses_agent: () => checkAgent(openai(model)),

  async embeddings() {
    for (const one of [compatible.embeddingModel(model), openai.embeddingModel(model)]) {
      const { embeddings } = await embedMany({ model: one, values: ["Oslo", "Lima"] });
      assert(embeddings[0].length > 1);
      assert.equal(embeddings[0].length, embeddings[1].length);
    }
  },

  async errors() {
    const failed = generateText({ ...short, model: chatModels[0], prompt: tooLong });
    await assert.rejects(failed, (error) => APICallError.isInstance(error) && error.statusCode === 400);
  },
});
