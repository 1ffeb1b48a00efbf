/** Formats numbers, times and sizes for display. "–" is a missing number. */

export const NONE = "–";
const KIBI = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const MINUTE = 60, HOUR = 3600, DAY = 86400;

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** 84200 -> "84,200"; 0.43127 -> "0.4313"; 0.5 -> "0.5000", so that a changing number keeps its width; 3.12e-5. */
export function number(value, digits = 4) {
  if (!isNumber(value)) return NONE;
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e9 || size < 1e-2) return value.toExponential(2);
  if (size >= 10 ** digits) return Math.round(value).toLocaleString("en");
  return value.toLocaleString("en", { minimumSignificantDigits: digits, maximumSignificantDigits: digits });
}

/** For axes: 84200 -> "84.2k", 1200000 -> "1.2M". */
export function compact(value) {
  if (!isNumber(value)) return NONE;
  const size = Math.abs(value);
  if (size > 0 && size < 1e-3) return trimmed(value.toExponential(1));
  if (size < 1e4) return value.toLocaleString("en", { maximumSignificantDigits: 4, useGrouping: false });
  const [unit, scale] = size < 1e6 ? ["k", 1e3] : size < 1e9 ? ["M", 1e6] : ["G", 1e9];
  return (value / scale).toLocaleString("en", { maximumSignificantDigits: 4, useGrouping: false }) + unit;
}

function trimmed(text) {
  return text.replace(".0e", "e");
}

export function percent(share, digits = 1) {
  return isNumber(share) ? `${(100 * share).toFixed(digits)} %` : NONE;
}

export function bytes(value) {
  if (!isNumber(value)) return NONE;
  let size = value, unit = 0;
  while (Math.abs(size) >= 1024 && unit < KIBI.length - 1) { size /= 1024; unit += 1; }
  return `${size.toLocaleString("en", { maximumSignificantDigits: 3 })} ${KIBI[unit]}`;
}

/** A short span, for step times: 0.0412 -> "41.2 ms", 1.5 -> "1.5 s". */
export function span(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds !== 0 && Math.abs(seconds) < 0.1) return `${number(seconds * 1000, 3)} ms`;
  return seconds < 2 * MINUTE ? `${number(seconds, 3)} s` : duration(seconds);
}

/** A long span: "42 s", "12 min", "3 h 20 min", "4 d 3 h". */
export function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds < 2 * MINUTE) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 2 * HOUR) return `${Math.round(seconds / MINUTE)} min`;
  if (seconds < 2 * DAY) return pair(seconds, HOUR, "h", MINUTE, "min");
  return pair(seconds, DAY, "d", HOUR, "h");
}

function pair(seconds, large, largeName, small, smallName) {
  const parts = Math.round(seconds / small), each = large / small;
  const rest = parts % each;
  return `${Math.floor(parts / each)} ${largeName}` + (rest ? ` ${rest} ${smallName}` : "");
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY_CLOCK = new Intl.DateTimeFormat("en-GB",
  { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY_MINUTE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const CLOCK_MINUTE = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

/** Local time of day, with the date unless it is today. */
export function moment(unix, now = Date.now() / 1000) {
  if (!isNumber(unix)) return NONE;
  const date = new Date(unix * 1000);
  return (date.toDateString() === new Date(now * 1000).toDateString() ? CLOCK : DAY_CLOCK).format(date);
}

/** Labels of a time axis whose ticks are `step` seconds apart; the date is shown where it changes. */
export function timeLabels(splits, step) {
  let day = null;
  return splits.map((unix) => {
    const date = new Date(unix * 1000);
    if (step >= DAY) return DATE.format(date);
    const today = date.toDateString(), fresh = today !== day;
    day = today;
    if (fresh) return DAY_MINUTE.format(date).replace(", ", "\n");
    return (step < MINUTE ? CLOCK : CLOCK_MINUTE).format(date);
  });
}

/** How a unit is displayed: `long` in legends and tables, `short` on an axis, whose ticks are `steps` apart if given. */
export const UNITS = {
  number: { long: number, short: compact },
  share: { long: (value) => percent(value), short: (value) => `${compact(Number((100 * value).toPrecision(6)))} %` },
  seconds: { long: span, short: (value) => (value < 2 * MINUTE ? `${compact(value)} s` : duration(value)) },
  bytes: { long: bytes, short: bytes, steps: Array.from({ length: 50 }, (_, power) => 2 ** power) },
};

/** The unit of a metric by the suffix of its name (`group/name_unit`). */
export function unitOf(name) {
  if (/_share$/.test(name)) return UNITS.share;
  if (/_bytes$/.test(name)) return UNITS.bytes;
  if (/_s$/.test(name) && !/_per_s$/.test(name)) return UNITS.seconds;
  return UNITS.number;
}
