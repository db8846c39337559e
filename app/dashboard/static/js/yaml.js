// A job's body as a job file for `tunesmith jobs submit`: YAML of maps, lists, texts, numbers and truth values.

/** The file's text; every field on a line of its own. */
export function toYaml(value, indent = "") {
  return Object.entries(value).map(([key, own]) => line(key, own, indent)).join("");
}

function line(key, value, indent) {
  const name = `${indent}${scalar(key)}:`;
  if (value && typeof value === "object" && !Array.isArray(value)) {
    return Object.keys(value).length ? `${name}\n${toYaml(value, `${indent}  `)}` : `${name} {}\n`;
  }
  if (typeof value === "string" && value.includes("\n")) return `${name} ${JSON.stringify(value)}\n`;
  return `${name} ${Array.isArray(value) ? `[${value.map(scalar).join(", ")}]` : scalar(value)}\n`;
}

/** Plain where YAML reads the text as that text, else as JSON, which is YAML too. */
function scalar(value) {
  const isPlain = typeof value === "string" && /^[A-Za-z][A-Za-z0-9_./-]*$/.test(value);
  return isPlain && !/^(true|false|null|yes|no|on|off|y|n)$/i.test(value) ? value : JSON.stringify(value);
}
