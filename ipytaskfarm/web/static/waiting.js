// Why tasks wait: reasons with counts, each with an explanation of one task.

import { useState } from "./vendor/hooks.js";
import { count, things } from "./format.js";
import { html, Section, Empty, Bar, Task, unknown } from "./html.js";

function Reason({ model, row, total }) {
  const [reason, number, example, text] = row;
  const [open, setOpen] = useState(false);
  return html`<li class="tf-reason">
    <button type="button" class="tf-reason-head" aria-expanded=${open} onClick=${() => setOpen(!open)}>
      <span class="tf-number">${count(number)}</span><span class="tf-name">${reason}</span><span class="tf-chevron" aria-hidden="true">${open ? "▾" : "▸"}</span></button>
    <${Bar} parts=${[["scheduled", number / Math.max(1, total)]]} label=${`${count(number)} of ${count(total)} scheduled tasks`} />
    ${open ? html`<div class="tf-cause-body"><p class="tf-pre">${text}</p><span class="tf-muted">for example task <${Task} model=${model} id=${example} /></span></div>` : null}
  </li>`;
}

export function Waiting({ model }) {
  const known = model.section("waiting", null).value;
  const rows = known || [];
  const others = model.section("waiting_unknown", 0).value;
  const total = rows.reduce((sum, row) => sum + row[1], others);
  return html`<${Section} id="tf-waiting" title="Why tasks wait" aside=${total ? things(total, "task") : ""}>
    ${rows.length ? html`<ul class="tf-list">${rows.map((row) => html`<${Reason} key=${row[0]} model=${model} row=${row} total=${total} />`)}</ul>` : html`<${Empty}>${known ? "No task waits." : unknown(model)}<//>`}
    ${others ? html`<p class="tf-muted">${things(others, "more task")} ${others === 1 ? "waits" : "wait"} for others, for a time, or in a paused job.</p>` : null}
  <//>`;
}
