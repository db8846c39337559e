// Numbers, sizes and times in words.

const UNITS = ["B", "KB", "MB", "GB", "TB"];

/** `extra`: so many more digits, where values are near each other. */
export function bytes(count, extra = 0) {
  if (count == null) return "–";
  let unit = 0;
  let value = count;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? value.toFixed(unit === 0 ? 0 : extra) : value.toFixed(1 + extra)} ${UNITS[unit]}`;
}

export function duration(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "–";
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.round(hours / 24)} days`;
}

export function ago(time) {
  if (!time) return "–";
  const seconds = (Date.now() - new Date(time)) / 1000;
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

export function between(start, end) {
  return start ? duration((new Date(end ?? Date.now()) - new Date(start)) / 1000) : "–";
}

export const moment = (time) => (time ? new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "–");

export function number(value, digits = 4) {
  if (value == null || Number.isNaN(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return Number(value.toPrecision(digits)).toLocaleString("en");
}

/** A number on a chart. */
export const figure = (value, extra = 0) => number(value, 4 + extra);

export const count = (value, extra = 0) => (value == null ? "–" : Number(value.toFixed(extra)).toLocaleString("en", { maximumFractionDigits: extra }));

export const percent = (share) => (share == null ? "–" : `${Math.round(share * 100)}%`);

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;
