// Numbers, durations and moments for people.

const COUNT = new Intl.NumberFormat("en-US");

export const count = (value) => (value === null || value === undefined ? "" : COUNT.format(value));

export function span(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "";
  const s = Math.max(0, seconds);
  if (s < 1e-6) return "0 s";
  if (s < 0.001) return `${Math.round(s * 1e6)} µs`;
  if (s < 1) return `${+(s * 1000).toPrecision(3)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 119.5) return `${Math.round(s)} s`;
  const minutes = Math.max(2, Math.floor(s / 60));
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${Math.floor(hours / 24)} d ${hours % 24} h` : `${hours / 24} d`;
}

export const ago = (at, now) => (!at ? "" : now - at < 2 ? "just now" : `${span(now - at)} ago`);

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "";
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return unit === "B" ? `${value} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

export const rate = (perSecond) =>
  perSecond === null || perSecond === undefined ? "" : perSecond >= 0.1 || perSecond === 0
    ? `${count(+perSecond.toPrecision(3))}/s` : `${count(+(perSecond * 3600).toPrecision(3))}/h`;

const two = (value) => String(value).padStart(2, "0");

export function clock(at, precise = false) {
  if (!at) return "";
  const d = new Date(at * 1000);
  const time = `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  return precise ? `${time}.${String(d.getMilliseconds()).padStart(3, "0")}` : time;
}

function day(at) {
  const d = new Date(at * 1000);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
}

export const moment = (at) => (at ? `${day(at)} ${clock(at)}` : "");

// The time, and the date unless it is today's: farms run over midnight, and reports are read later.
export const dated = (at, precise = false) => (!at || day(at) === day(Date.now() / 1000) ? clock(at, precise) : `${day(at)} ${clock(at, precise)}`);

const CELL = '(?:/[^\\s:"]*/ipykernel_\\d+/\\d+\\.py|<ipython-input-\\d+-[^>\\s"]*>)';
const PLACES = new RegExp(`File "${CELL}", line (\\d+)|${CELL}:(\\d+)`, "g");

// Only the notebook's kernel knows the numbers of its cells; names of temporary files tell nobody anything.
export const withCells = (text) => text.replace(PLACES, (_, inTraceback, inText) => `a notebook's cell, line ${inTraceback || inText}`);

// The explanation of a task that has ended has its moment in UTC.
export const explained = (line) => withCells(line.replace(/^(task \d+ .*? at )(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)/, (_, head, at) => head + moment(Date.parse(at) / 1000)));

export const things = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
