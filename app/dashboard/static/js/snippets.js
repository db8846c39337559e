// A request as a command and as a program, to be copied. The key is named, never written out.

import { storedKey } from "./api.js";

export function asCurl(path, body) {
  const key = storedKey() ? [`-H "Authorization: Bearer $TUNESMITH_API_KEY"`] : [];
  const parts = [`curl -N ${location.origin}${path}`, `-H 'Content-Type: application/json'`, ...key, `-d ${quote(JSON.stringify(body, null, 2))}`];
  return parts.join(" \\\n  ");
}

/** Within single quotes a shell reads nothing but the closing one. */
const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** With the `openai` package: what other programs here are likely to use. */
export function asPython({ adapter, base_model: baseModel, model, messages, prompt, max_new_tokens: maxTokens, stream: _, ...sampling }) {
  const own = {};
  const known = { model: model ?? adapter ?? baseModel, ...(messages ? { messages } : { prompt }), max_tokens: maxTokens };
  for (const [name, value] of Object.entries(sampling)) {
    const target = ["top_k", "min_p", "repetition_penalty", "quantization"].includes(name) ? own : known;
    target[name] = value;
  }
  const call = messages ? "client.chat.completions.create" : "client.completions.create";
  const lines = Object.entries(known).map(([name, value]) => `    ${name}=${literal(value)},`);
  if (Object.keys(own).length) lines.push(`    extra_body=${literal(own)},`);
  return `${storedKey() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${literal(`${location.origin}/v1`)}, api_key=${storedKey() ? 'os.environ["TUNESMITH_API_KEY"]' : '"none"'})
stream = ${call}(
${lines.join("\n")}
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(${messages ? 'chunk.choices[0].delta.content or ""' : "chunk.choices[0].text"}, end="", flush=True)
print()
`;
}

/** A value as Python writes it; what JSON says of text, Python understands. */
function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, own]) => `${JSON.stringify(key)}: ${literal(own)}`).join(", ")}}`;
  return JSON.stringify(value);
}
