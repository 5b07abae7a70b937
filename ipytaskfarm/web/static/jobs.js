// Jobs: how far, how fast, when done.

import { useState } from "./vendor/hooks.js";
import { count, rate, span, things } from "./format.js";
import { html, Section, Empty, Bar, showTasks, unknown } from "./html.js";
import { Priority } from "./priority.js";

function Job({ model, id, job }) {
  const ended = Math.max(0, job.ended), total = Math.max(job.total, ended, 1);
  const good = Math.max(0, ended - job.failed);
  const over = job.unfinished === 0 && ended >= job.total;
  const name = job.name.trim() || id; // a name of blanks alone could not be seen
  const { held, stopping } = model.section("hold", {}).value;
  const goes = model.there.value && !held && !stopping; // else nothing can be foretold
  const words = job.aborted ? "aborted" : over ? "done" : job.paused ? "paused" : goes && job.left_s !== null ? `${span(job.left_s)} left` : "";
  return html`<li class="tf-job" data-over=${over}>
    <div class="tf-job-line"><button type="button" class="tf-link tf-name" onClick=${() => showTasks(model, { job: id })} aria-label=${`job ${name}: show its tasks`}>${name}</button>
      <span class="tf-push"></span><span>${words}</span></div>
    <${Bar} parts=${[["succeeded", good / total], ["failed", job.failed / total]]} label=${`${count(ended)} of ${count(job.total)} tasks have ended, ${count(job.failed)} of them failed`} />
    <div class="tf-job-line tf-muted"><span>${count(ended)} of ${count(job.total)}</span>${job.failed ? html`<button type="button" class="tf-link tf-bad" onClick=${() => showTasks(model, { job: id, state: "failed" })}>${count(job.failed)} failed</button>` : null}
      ${goes && job.rate !== null && !over ? html`<span>${rate(job.rate)}</span>` : null}${job.priority && !over ? html`<span>priority ${job.priority}</span>` : null}<span class="tf-push"></span>
      ${model.may.value && !over ? html`<${Priority} label=${`job ${name}`} value=${job.priority} set=${(priority) => model.act("priority", { job: id, priority })} /> <button type="button" class="tf-small" onClick=${() => model.act("pause", { job: id, on: !job.paused })}>${job.paused ? "Go on" : "Pause"}</button>` : null}</div>
    ${job.aborted ? html`<p class="tf-message">${job.aborted}</p>` : null}
  </li>`;
}

export function Jobs({ model }) {
  const jobs = model.section("jobs", {}).value;
  const known = model.section("jobs_more", null).value;
  const more = known || 0;
  const [all, setAll] = useState(false);
  const rows = Object.entries(jobs).sort(([, a], [, b]) => (b.unfinished > 0) - (a.unfinished > 0) || (b.rate !== null) - (a.rate !== null) || b.opened_s - a.opened_s);
  const unfinished = rows.filter(([, job]) => job.unfinished > 0).length;
  const shown = all ? rows : rows.slice(0, 6);
  return html`<${Section} id="tf-jobs" title="Jobs" aside=${unfinished ? things(unfinished, "unfinished job") : ""}>
    ${rows.length ? html`<ul class="tf-list">${shown.map(([id, job]) => html`<${Job} key=${id} model=${model} id=${id} job=${job} />`)}</ul>` : html`<${Empty}>${known === null ? unknown(model) : "There are no jobs: maps and tc.create_job make some."}<//>`}
    ${rows.length > 6 ? html`<button type="button" class="tf-more" onClick=${() => setAll(!all)}>${all ? "Show fewer" : `Show ${rows.length - 6} more`}</button>` : null}
    ${all && more ? html`<p class="tf-muted">${things(more, "older job")} not shown.</p>` : null}
  <//>`;
}
