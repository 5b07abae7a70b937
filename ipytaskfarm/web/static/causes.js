// Failures, grouped by cause, each with one traceback.

import { useState } from "./vendor/hooks.js";
import { ago, count, things, withCells } from "./format.js";
import { html, Section, Empty, Task, showTasks, unknown } from "./html.js";

function Cause({ model, id, cause }) {
  const [open, setOpen] = useState(false);
  const [detail, setDetail] = useState(null);
  const [retriedOf, setRetriedOf] = useState(0); // how many there were when they were tried again: later ones are others
  const [rest, setRest] = useState(false); // whether some were left, because they were too many for one time
  const retried = cause.count <= retriedOf;
  const toggle = async () => {
    setOpen(!open);
    if (!open && (!detail || detail.error) && cause.ids.length) {
      setDetail(null);
      try { setDetail(await model.transport.ask("task", { id: cause.ids[0] })); }
      catch (error) { setDetail({ error: error.message }); }
    }
  };
  const end = detail && detail.end;
  const retry = async () => {
    const done = await model.act("retry_group", { cause: id });
    if (!done) return;
    setRest(done.more);
    if (!done.more) setRetriedOf(cause.count);
  };
  return html`<li class="tf-cause">
    <button type="button" class="tf-cause-head" aria-expanded=${open} onClick=${toggle}>
      <span class="tf-number" data-state="failed">${count(cause.count)}</span>
      <span class="tf-cause-text"><span class="tf-cause-what"><b>${cause.etype || cause.reason}</b>${cause.text ? html` <span class="tf-message">${cause.text}</span>` : null}</span>
        <small class="tf-muted">${cause.place ? html`<code>${withCells(cause.place)}</code>` : cause.reason}${cause.last_s ? html`<span>${ago(cause.last_s, model.now.value)}</span>` : null}</small></span>
      <span class="tf-chevron" aria-hidden="true">${open ? "▾" : "▸"}</span>
    </button>
    ${open ? html`<div class="tf-cause-body">
      ${detail && detail.error ? html`<p class="tf-muted">${detail.error}</p>` : null}
      ${end && end.traceback ? html`<pre class="tf-text" tabindex="0" aria-label=${`traceback of task ${detail.id}`}>${withCells(end.traceback)}</pre>` : null}
      ${end && !end.traceback ? html`<p class="tf-message">${end.text || "There is no traceback: the task did not run to its end."}</p>` : null}
      ${!detail && cause.ids.length ? html`<p class="tf-muted">…</p>` : null}
      <div class="tf-actions">
        <span class="tf-muted">${cause.count === 1 ? "task" : "tasks"} ${cause.ids.slice(0, 5).map((task) => html`<${Task} model=${model} id=${task} /> `)}${cause.count > 5 ? "…" : ""}</span>
        <span class="tf-push"></span>
        <button type="button" onClick=${() => showTasks(model, { state: "failed", cause: id })}>Show all</button>
        ${model.may.value ? html`<button type="button" class="tf-primary" disabled=${retried} onClick=${retry}>${retried ? "Submitted again" : rest ? "Try the others again" : `Try ${things(cause.count, "task")} again`}</button>` : null}
      </div>
    </div>` : null}
  </li>`;
}

const FIRST = 8;
const MOST = 30;

export function Causes({ model }) {
  const [all, setAll] = useState(false);
  const causes = model.section("causes", {}).value;
  const known = model.section("causes_more", null).value;
  const more = known || 0;
  const rows = Object.entries(causes).sort(([, a], [, b]) => b.count - a.count || b.last_s - a.last_s);
  return html`<${Section} id="tf-causes" title="Failures" aside=${rows.length ? things(rows.length + more, "cause") : ""}>
    ${rows.length ? html`<ul class="tf-list">${rows.slice(0, all ? MOST : FIRST).map(([id, cause]) => html`<${Cause} key=${id} model=${model} id=${id} cause=${cause} />`)}</ul>`
      : html`<${Empty}>${known === null ? unknown(model) : "No task has failed."}<//>`}
    ${rows.length > FIRST ? html`<button type="button" class="tf-more" aria-expanded=${all} onClick=${() => setAll(!all)}>${all ? "Show fewer" : `Show ${Math.min(MOST, rows.length) - FIRST} more`}</button>` : null}
    ${all && rows.length + more > MOST ? html`<p class="tf-muted">${things(rows.length + more - MOST, "rarer cause")} not shown: the table of tasks below has all.</p>` : null}
  <//>`;
}
