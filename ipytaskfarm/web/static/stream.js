// The task stream: one lane for each engine, time from left to right, drawn on a canvas.

import { clock, count, dated, span, things } from "./format.js";

const LANE_MIN = 4;
const LANE_MAX = 22;
const AXIS = 22;
const LABEL = 44;

export function hash(text) {
  let value = 2166136261;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 16777619);
  return value >>> 0;
}

export function colours(element) {
  const style = getComputedStyle(element);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    names: [1, 2, 3, 4, 5, 6, 7, 8].map((n) => read(`--tf-name-${n}`)),
    bad: read("--tf-bad"), warn: read("--tf-warn"), text: read("--tf-muted"), line: read("--tf-line"),
    ground: read("--tf-card"), busy: read("--tf-busy"), ink: read("--tf-text"),
  };
}

// Engines in the rows, by id; those of the stretches in this time and those that are there.
export function lanes(stretches, engines, since, until) {
  const ids = new Set();
  for (const row of stretches) if (row[4] >= since && row[3] <= until) ids.add(row[0]);
  for (const id of Object.keys(engines)) ids.add(+id);
  return [...ids].sort((a, b) => a - b);
}

export function layout(ids, height) {
  const lane = Math.min(LANE_MAX, (height - AXIS) / Math.max(1, ids.length)); // less than a point for very many engines
  return { lane, gap: lane > 6 ? 2 : lane > LANE_MIN ? 1 : 0 };
}

export const heightFor = (number) => Math.round(AXIS + Math.min(LANE_MAX * number, Math.max(LANE_MIN * number, 260), 520));

export function draw(canvas, { stretches, engines, since, until, now, live, hovered }) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height) return null;
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const c = canvas.getContext("2d");
  const paint = colours(canvas);
  c.setTransform(scale, 0, 0, scale, 0, 0);
  c.clearRect(0, 0, width, height);
  const ids = lanes(stretches, live ? engines : {}, since, until);
  const { lane, gap } = layout(ids, height);
  const place = new Map(ids.map((id, n) => [id, n]));
  const x = (at) => LABEL + ((at - since) / (until - since)) * (width - LABEL - 8);
  axis(c, paint, x, since, until, width, height);
  c.font = "11px system-ui, sans-serif";
  c.textBaseline = "middle";
  const every = Math.ceil(14 / lane);
  c.fillStyle = paint.text;
  c.textAlign = "right";
  ids.forEach((id, n) => n % every === 0 && c.fillText(String(id), LABEL - 8, Math.max(6, n * lane + lane / 2)));
  c.save();
  c.beginPath();
  c.rect(LABEL, 0, width - LABEL - 8, height - AXIS);
  c.clip();
  if (live) {
    c.fillStyle = paint.busy;
    for (const [id, engine] of Object.entries(engines)) {
      if (engine.task < 0 || !engine.since_s || !place.has(+id)) continue;
      const from = x(engine.since_s);
      c.fillRect(from, place.get(+id) * lane, Math.max(1, x(now) - from), Math.max(1, lane - gap));
    }
  }
  for (const row of stretches) {
    const [engine, name, outcome, begin, end] = row;
    if (end < since || begin > until || !place.has(engine)) continue;
    const from = x(begin), top = place.get(engine) * lane;
    const wide = Math.max(1, x(end) - from);
    c.fillStyle = outcome === "" ? paint.names[hash(name) % 8] : outcome === "deferred" || outcome === "rejected" ? paint.warn : paint.bad;
    c.fillRect(from, top, wide, Math.max(1, lane - gap));
    if (outcome !== "" && lane > 6) { // a mark for readers who do not see colours
      c.fillStyle = paint.ground;
      c.fillRect(from, top + (lane - gap) / 2 - 0.5, wide, 1);
    }
  }
  if (hovered && place.has(hovered[0])) {
    c.strokeStyle = paint.ink;
    c.lineWidth = 1.5;
    const from = x(hovered[3]);
    c.strokeRect(from, place.get(hovered[0]) * lane, Math.max(2, x(hovered[4]) - from), lane - gap);
  }
  c.restore();
  return { ids, lane, x, at: (px) => since + ((px - LABEL) / (width - LABEL - 8)) * (until - since) };
}

function axis(c, paint, x, since, until, width, height) {
  const length = until - since;
  const steps = [0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];
  const most = Math.max(2, width / 110);
  const step = steps.find((each) => length / each <= most) || length / most;
  c.strokeStyle = paint.line;
  c.fillStyle = paint.text;
  c.font = "11px system-ui, sans-serif";
  c.textAlign = "center";
  c.textBaseline = "alphabetic";
  c.lineWidth = 1;
  for (let at = Math.ceil(since / step) * step; at <= until; at += step) {
    const px = Math.round(x(at)) + 0.5;
    c.beginPath();
    c.moveTo(px, 0);
    c.lineTo(px, height - AXIS + 4);
    c.stroke();
    if (px > LABEL + 20 && px < width - 30) c.fillText(clock(at, step < 1), px, height - 6);
  }
}

// The stretch under a point of the canvas, the shortest if several are there.
export function stretchAt(drawn, stretches, px, py) {
  if (!drawn) return null;
  const id = drawn.ids[Math.floor(py / drawn.lane)];
  let best = null;
  for (const row of stretches) {
    if (row[0] !== id) continue;
    const from = drawn.x(row[3]) - 2, to = Math.max(drawn.x(row[4]), drawn.x(row[3]) + 1) + 2;
    if (px >= from && px <= to && (!best || row[4] - row[3] < best[4] - best[3])) best = row;
  }
  return best;
}

export function describe(row) {
  const [engine, name, outcome, begin, end, runs, task, busy, bad] = row;
  const what = runs === 1 ? `task ${task}` : `${things(runs, "run")} from task ${task} on`;
  const named = name ? ` ${name}` : "";
  const how = outcome === "" ? "" : bad === runs ? `, ${outcome}` : `, ${count(bad)} with an error or a retry (${outcome})`;
  const each = runs === 1 ? span(busy) : `${span(busy / runs)} each`;
  return `engine ${engine}: ${what}${named}${how}, ${each}, ${dated(begin, true)}`;
}

// What the stretches of a time say.  part: there may be others, which are not told.
export function summary(stretches, since, until, part) {
  let runs = 0, bad = 0;
  const engines = new Set();
  for (const row of stretches) {
    if (row[4] < since || row[3] > until) continue;
    runs += row[5];
    engines.add(row[0]);
    bad += row[8];
  }
  const when = `from ${dated(since)} to ${dated(until)}`;
  if (!runs) return `nothing ended ${when}`;
  return `${things(engines.size, "engine")}, ${part ? "at least " : ""}${things(runs, "run")}, ${bad ? `${count(bad)} with an error or a retry, ` : ""}${when}`;
}
