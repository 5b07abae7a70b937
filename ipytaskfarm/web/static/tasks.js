// A table of tasks, filtered and paged by the farm.

import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { ago, count, span } from "./format.js";
import { html, Section, Empty, Skip, Task, unknown } from "./html.js";

const STATES = ["", "running", "scheduled", "failed", "succeeded"]; // "": all
const COUNT = 25;
const EVERY_MS = 2000;
const NONE = { rows: [], next: null, full: true, asked: "" };

export function Tasks({ model }) {
  const filter = model.filter.value;
  const jobs = model.section("jobs", {}).value;
  const causes = model.section("causes", {}).value;
  const counts = model.section("counts", {}).value;
  const [pages, setPages] = useState([null]);
  const [page, setPage] = useState(NONE);
  const [error, setError] = useState("");
  const [text, setText] = useState(filter.text);
  const asked = useRef(0);
  const sent = useRef(filter.text);
  const set = (change) => { model.filter.value = { ...model.filter.value, ...change }; };
  const before = pages[pages.length - 1];
  const there = model.there.value;
  const wanted = JSON.stringify([filter, before]);

  const look = async () => {
    const own = ++asked.current;
    let rows = [], from = before, found;
    try {
      for (let turn = 0; turn < 200; turn++) {
        found = await model.transport.ask("tasks", { ...filter, state: filter.state || null, before: from, count: COUNT - rows.length });
        if (own !== asked.current) return;
        rows = rows.concat(found.rows);
        setPage({ rows, next: found.next, full: found.full, asked: wanted });
        setError("");
        if (found.full || found.next === null || rows.length >= COUNT) break;
        from = found.next;
      }
    } catch (problem) {
      if (own !== asked.current) return;
      setError(problem.message);
      setPage((was) => (was.asked === wanted ? was : NONE)); // rows that do not fit the filter
    }
  };
  useEffect(() => {
    setPages([null]);
    // A text that came from this field is left alone: while it was on its way, more may have been typed.
    if (filter.text !== sent.current) { sent.current = filter.text; setText(filter.text); }
  }, [filter]);
  useEffect(() => { look(); return () => { asked.current++; }; }, [filter, before, there]);
  useEffect(() => { // while the first page is shown it follows the farm
    if (!model.transport.live || before !== null) return undefined;
    const timer = setInterval(() => { if (!document.hidden && model.there.value) look(); }, EVERY_MS);
    return () => clearInterval(timer);
  }, [filter, before]);
  useEffect(() => {
    if (text === filter.text) return undefined;
    const timer = setTimeout(() => { sent.current = text; set({ text }); }, 200);
    return () => clearTimeout(timer);
  }, [text, filter.text]);

  const now = model.now.value;
  const live = model.transport.live;
  const ranked = page.rows.some((row) => row.priority);
  const numbered = /^\s*\d{1,15}\s*$/.test(text); // the farm knows it without looking through all tasks
  const open = () => (model.opened.value = Number(text));
  const chips = [];
  if (filter.job) chips.push(["job", `job ${(jobs[filter.job] || {}).name || filter.job}`]);
  if (filter.cause) chips.push(["cause", `cause ${(causes[filter.cause] || {}).etype || "of failures"}`]);
  if (filter.engine_id !== null) chips.push(["engine_id", `engine ${filter.engine_id}`]);
  const number = filter.state && !chips.length && !filter.text ? counts[filter.state] : null;
  return html`<${Section} id="tf-tasks" title="Tasks" aside=${number === null || number === undefined ? "" : count(number)} wide>
    <div class="tf-toolbar" role="search">
      <div class="tf-choice" role="group" aria-label="State">${STATES.map((state) => html`<button type="button" aria-pressed=${filter.state === state} onClick=${() => set({ state, cause: state === "failed" ? filter.cause : null })}>${state || "all"}</button>`)}</div>
      <input type="search" placeholder="name, error, place, or number" aria-label="Part of a name, an error or a place; or a task's number" value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${(event) => { if (event.key === "Enter" && numbered) open(); }} />
      ${numbered ? html`<button type="button" onClick=${open}>Open task ${Number(text)}</button>` : null}
      ${chips.map(([name, word]) => html`<button type="button" class="tf-chip" aria-label=${`${word}: remove this filter`} onClick=${() => set({ [name]: null })}>${word} ×</button>`)}
    </div>
    ${error && (there || !live) ? html`<p class="tf-trouble" role="alert">${error}</p>` : null}
    ${page.rows.length ? html`<${Skip} rows=${page.rows.length}><div class="tf-scroll" tabindex="0" role="region" aria-label="Table of tasks"><table><thead><tr><th scope="col">task</th><th scope="col">state</th><th scope="col">name</th><th scope="col" class="tf-optional">engine</th><th scope="col" class="tf-right tf-optional">attempts</th>${ranked ? html`<th scope="col" class="tf-right">priority</th>` : null}<th scope="col" class="tf-right">run time</th><th scope="col" class="tf-right tf-optional">when</th><th scope="col">error</th></tr></thead>
      <tbody>${page.rows.map((row) => html`<tr key=${row.id}><td><${Task} model=${model} id=${row.id} />${row.items > 1 ? html`<small class="tf-muted"> +${count(row.items - 1)}</small>` : null}</td>
        <td><span class="tf-dot" data-state=${row.state}></span>${row.state}${row.reason && row.reason !== row.state && row.reason !== "error" ? html`<small class="tf-muted tf-optional"> ${row.reason}</small>` : null}</td>
        <td class="tf-clip">${row.name}</td><td class="tf-optional">${row.engine_id >= 0 ? row.engine_id : ""}</td><td class="tf-right tf-optional">${row.attempts || ""}</td>${ranked ? html`<td class="tf-right">${row.priority || ""}</td>` : null}
        <td class="tf-right">${span(row.run_s ? row.run_s : row.state === "running" && row.started_s ? model.seen.value - row.started_s : null)}</td>
        <td class="tf-right tf-optional tf-muted">${ago(row.completed_s || row.started_s || row.submitted_s, now)}</td>
        <td class="tf-clip">${row.etype ? html`<b>${row.etype}</b> <span class="tf-muted">${row.text}</span>` : ""}</td></tr>`)}</tbody></table></div><//>`
      : html`<${Empty}>${page.asked && page.next === null ? "No task matches." : !error ? "Looking …" : there ? "" : unknown(model)}<//>`}
    <div class="tf-actions"><button type="button" disabled=${pages.length < 2} onClick=${() => setPages(pages.slice(0, -1))}>Newer</button><button type="button" disabled=${page.next === null} onClick=${() => setPages([...pages, page.next])}>Older</button>
      <span class="tf-muted" role="status">${!page.full && page.next !== null && page.rows.length < COUNT ? "looking further …" : ""}</span></div>
  <//>`;
}
