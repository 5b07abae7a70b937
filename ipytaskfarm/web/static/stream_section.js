// The task stream with its slider: live, or any window of the past that the farm keeps.

import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { dated, moment, span } from "./format.js";
import { html, Section } from "./html.js";
import { describe, draw, heightFor, lanes, stretchAt, summary } from "./stream.js";

const LENGTHS = [10, 60, 300, 1800, 7200, 43200];

const TOLD_MAX = 3000; // as in view/fold.py: of so many stretches the oldest ones are dropped
const READ_MAX = 20000;
const UNREAD = { rows: [], first: null, reading: false, part: false };

export function Stream({ model }) {
  const canvas = useRef(null);
  const drawn = useRef(null);
  const saved = model.section("report", {}).value;
  const [length, setLength] = useState(saved.made_s ? LENGTHS.find((each) => each >= saved.last_s - saved.first_s + 1) || LENGTHS[LENGTHS.length - 1] : 60);
  const [until, setUntil] = useState(null); // null: live
  const [past, setPast] = useState(UNREAD);
  const [hovered, setHovered] = useState(null);
  const told = model.section("stretches", []).value;
  const engines = model.section("engines", {}).value;
  const farm = model.section("farm", {}).value;
  const now = saved.last_s || model.seen.value;
  const there = model.there.value;
  const live = until === null && !saved.made_s;
  const end = until === null ? now : until;
  const since = end - length;
  const rows = (live && length <= 300) || past.first === null ? told : past.rows;
  const part = rows === told ? told.length >= TOLD_MAX : past.part;
  const ask = !live || length > 300;
  const window_ = ask ? Math.round(live ? end / (length / 60) : end * 1000) : null;

  useEffect(() => {
    if (!ask) { setPast(UNREAD); return undefined; }
    let over = false;
    const timer = setTimeout(async () => {
      let found = [], before = null;
      setPast((was) => ({ ...was, reading: true }));
      try {
        for (let turn = 0; turn < 60 && !over; turn++) {
          const answer = await model.transport.ask("stretches", { since_s: since, until_s: end, before });
          found = found.concat(answer.rows);
          if (over) return;
          setPast({ rows: found, first: answer.first_s, reading: answer.next !== null, part: answer.next !== null });
          before = answer.next;
          if (before === null || found.length > READ_MAX) break;
        }
      } catch (error) { if (!over && model.there.value) model.notice.value = { text: error.message, bad: true }; }
      if (!over) setPast((was) => ({ ...was, reading: false }));
    }, 120);
    return () => { over = true; clearTimeout(timer); };
  }, [ask, length, window_, there]);

  const paint = () => { if (canvas.current) drawn.current = draw(canvas.current, { stretches: rows, engines, since, until: end, now, live, hovered }); };
  const latest = useRef(paint); // what is shown now, when the window changes
  latest.current = paint;
  useEffect(paint);
  useEffect(() => {
    const again = () => latest.current();
    const sizes = new ResizeObserver(again);
    sizes.observe(canvas.current);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", again);
    return () => { sizes.disconnect(); dark.removeEventListener("change", again); };
  }, []);

  const number = lanes(rows, live ? engines : {}, since, end).length;
  useEffect(() => { canvas.current.style.height = `${heightFor(number)}px`; paint(); }, [number]);

  const first = saved.first_s || past.first || model.section("first_s", null).value || farm.started_s || now - 3600;
  const move = (to) => setUntil(to >= now - 1 ? null : Math.max(first + Math.min(length, now - first) * 0.2, to));
  const zoom = (step) => setLength(LENGTHS[Math.max(0, Math.min(LENGTHS.length - 1, LENGTHS.indexOf(length) + step))]);
  const keys = (event) => {
    const action = { ArrowLeft: () => move(end - length / 4), ArrowRight: () => move(end + length / 4), "+": () => zoom(-1), "-": () => zoom(1), Home: () => setUntil(Math.min(now - 1, first + length)), End: () => setUntil(null) }[event.key];
    if (action) { event.preventDefault(); action(); }
  };
  const point = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return stretchAt(drawn.current, rows, event.clientX - box.left, event.clientY - box.top);
  };
  const aside = html`<div class="tf-toolbar"><label>window <select value=${length} onChange=${(event) => setLength(Number(event.target.value))}>${LENGTHS.map((each) => html`<option value=${each}>${span(each)}</option>`)}</select></label>
    ${saved.made_s ? null : html`<button type="button" aria-pressed=${live} onClick=${() => setUntil(live ? now : null)}>${live ? "Stop here" : "Go live"}</button>`}</div>`;
  return html`<${Section} id="tf-stream" title="Task stream" aside=${aside} wide>
    <canvas ref=${canvas} class="tf-stream" tabindex="0" role="img" aria-label=${`${summary(rows, since, end, part)}. Arrow keys move in time, plus and minus zoom.`} onKeyDown=${keys}
      onMouseMove=${(event) => setHovered(point(event))} onMouseLeave=${() => setHovered(null)} onClick=${(event) => { const row = point(event); if (row) model.opened.value = row[6]; }}></canvas>
    <p class="tf-stream-text tf-muted">${hovered ? describe(hovered) : past.reading && ask ? "reading further back …" : summary(rows, since, end, part)}</p>
    <label class="tf-slider"><span class="tf-muted">${moment(first)}</span><input type="range" min=${Math.floor(first)} max=${Math.ceil(now)} step="1" value=${Math.round(end)} aria-label="Time travel" aria-valuetext=${live && there ? "now" : moment(end)}
      onInput=${(event) => move(Number(event.target.value))} /><span class="tf-muted">${live && there ? "now" : dated(end)}</span></label>
  <//>`;
}
