// The live view: mount(element, transport, {job}) shows a farm in an element, and returns a function that takes it away
// again.  job: the id of a job with whose tasks the table of tasks begins.

import { render } from "./vendor/preact.js";
import { useEffect, useState } from "./vendor/hooks.js";
import "./vendor/signals.js";
import { html, showTasks } from "./html.js";
import { farmModel, GONE } from "./model.js";
import { count, moment, rate } from "./format.js";
import { Causes } from "./causes.js";
import { Jobs } from "./jobs.js";
import { Waiting } from "./waiting.js";
import { Engines } from "./engines.js";
import { Stream } from "./stream_section.js";
import { Flames } from "./flames.js";
import { Tasks } from "./tasks.js";
import { Drawer } from "./drawer.js";
import { Logs } from "./logs.js";
import { Throughput } from "./throughput.js";

const STATES = { up: "connected", connecting: "connecting", gone: "not there", quiet: "does not answer", saved: "saved" };

function Header({ model }) {
  const farm = model.section("farm", {}).value;
  const status = model.section("status", GONE).value;
  const hold = model.section("hold", {}).value;
  const line = model.line.value;
  const up = model.there.value;
  // What the farm said last counts while the farm is there: one that stopped is gone, not stopping.
  const said = !up ? STATES[status.state] || status.state : hold.stopping ? "stopping" : hold.held ? "paused" : STATES.up;
  const state = line.state === "connecting" ? "connecting" : line.state === "lost" ? "no connection" : line.state === "refused" ? STATES.gone : said;
  return html`<header class="tf-header">
    <h1>${farm.name || "Task farm"}</h1>
    <span class="tf-state" data-state=${state === "connecting" ? "wait" : up ? (hold.held || hold.stopping ? "held" : "up") : status.state === "saved" ? "held" : "gone"} role="status">${state}</span>
    ${farm.started_s ? html`<span class="tf-muted">started ${moment(farm.started_s)}</span>` : null}
    ${farm.job ? html`<span class="tf-muted">job ${farm.job}</span>` : null}
    <span class="tf-push"></span>
    ${model.may.value && !hold.stopping ? html`<button type="button" onClick=${() => model.act("pause", { on: !hold.held })}>${hold.held ? "Go on" : "Pause the farm"}</button>` : null}
  </header>`;
}

function Trouble({ model }) {
  const status = model.section("status", GONE).value;
  const line = model.line.value;
  const loaded = model.loaded.value;
  let text = "";
  const before = status.seen_s ? ` What is shown is from ${moment(status.seen_s)}.` : "";
  const sentence = (words) => words.replace(/[.]?$/, ".");
  if (line.state === "refused") text = `${sentence(line.text)} This page goes on when it is there.`;
  else if (line.state === "lost") text = loaded ? `${line.text} What is shown is from ${moment(model.seen.value)}.` : line.text;
  else if (loaded && status.state === "gone") text = `${sentence(status.text || "The farm is not there")}${before} This page goes on when it is back.`;
  else if (loaded && status.state === "quiet") text = sentence(status.text) + before;
  const { refusing, stopping } = model.section("hold", {}).value;
  if (!text && refusing && !stopping && model.there.value) text = sentence(`No task is accepted: ${refusing}`);
  return text ? html`<p class="tf-trouble" role="alert">${text}</p>` : null;
}

// What differs between the page, the farm, its clients and its engines.  It works nevertheless, so it can be put away.
function Versions({ model }) {
  const lines = model.section("versions", []).value;
  const [closed, setClosed] = useState("");
  const text = lines.join("\n");
  return text && text !== closed && model.there.value ? html`<div class="tf-versions" role="note" aria-label="Versions that differ">
    <div>${lines.map((line) => html`<p>${line}</p>`)}</div>
    <button type="button" class="tf-close" aria-label="Close this note" onClick=${() => setClosed(text)}>×</button></div>` : null;
}

function Notice({ model }) {
  const notice = model.notice.value;
  useEffect(() => {
    if (!notice) return undefined;
    const timer = setTimeout(() => (model.notice.value = null), notice.bad ? 12000 : 5000);
    return () => clearTimeout(timer);
  }, [notice]);
  return html`<div class="tf-notices" aria-live="polite">${notice ? html`<p class="tf-notice" data-bad=${notice.bad}>${notice.text}
    <button type="button" class="tf-close" aria-label="Close this message" onClick=${() => (model.notice.value = null)}>×</button></p>` : null}</div>`;
}

function Totals({ model, whole }) {
  const counts = model.section("counts", {}).value;
  const series = model.section("series", []).value;
  const last = series.slice(-10);
  const speed = last.length && model.there.value ? last.reduce((sum, row) => sum + row[1] + row[2], 0) / last.length : null;
  const number = (state) => (counts[state] === undefined ? "–" : count(counts[state])); // not known is not none
  const tile = (state, hint) => html`<button type="button" class="tf-total" data-state=${state}
      aria-label=${`${number(state)} ${state}: show them`} onClick=${() => showTasks(model, { state })}>
    <strong>${number(state)}</strong><span>${state}</span>${hint ? html`<small>${hint}</small>` : null}</button>`;
  return html`<section class="tf-totals" aria-label="Tasks by state">
    ${tile("scheduled")} ${tile("running")} ${tile("succeeded", speed ? rate(speed) : "")} ${tile("failed")}
    ${whole ? html`<${Throughput} model=${model} />` : html`<div class="tf-throughput"></div>`}
  </section>`;
}

function Nothing({ model }) {
  const line = model.line.value;
  return line.state === "refused" ? null : html`<div class="tf-loading" role="status">Looking for the farm …</div>`;
}

// Calls this when the browser has shown what there is now.  A window that nobody sees has no frames.
function afterPaint(then) {
  let done = false;
  const once = () => { if (!done) { done = true; then(); } };
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(once)));
  setTimeout(once, 500);
}

function Page({ model }) {
  const ready = model.loaded.value;
  const [whole, setWhole] = useState(false); // what is below the numbers follows when they are shown
  useEffect(() => { if (ready) afterPaint(() => setWhole(true)); }, [ready]);
  return html`<div class="tf-page">
    <${Header} model=${model} />
    <${Trouble} model=${model} />
    <${Versions} model=${model} />
    ${ready ? html`<main class="tf-main" key=${model.incarnation.value}>
      <${Totals} model=${model} whole=${whole} />
      ${whole ? html`<div class="tf-columns">
        <div class="tf-column"><${Causes} model=${model} /><${Waiting} model=${model} /></div>
        <div class="tf-column"><${Jobs} model=${model} /><${Engines} model=${model} /></div>
      </div>
      <${Stream} model=${model} />
      <${Tasks} model=${model} />
      ${model.transport.live || model.transport.profiled ? html`<${Flames} model=${model} />` : null}
      ${model.transport.live ? html`<${Logs} model=${model} />` : null}
      <footer class="tf-muted">${footer(model)}</footer>` : null}
    </main>` : html`<${Nothing} model=${model} />`}
    <${Drawer} model=${model} />
    <${Notice} model=${model} />
  </div>`;
}

function footer(model) {
  const farm = model.section("farm", {}).value;
  const report = model.section("report", {}).value;
  if (report.made_s) return `saved on ${moment(report.made_s)} with ipytaskfarm ${farm.version}, ${report.machine}; it has ${count(report.tasks)} of ${count(report.tasks_total)} tasks`;
  return farm.version ? `ipytaskfarm ${farm.version} · ${model.control.value ? "this page may change the farm" : "this page only looks"}` : "";
}

export function mount(element, transport, { job = null } = {}) {
  const model = farmModel(transport, element);
  if (job) model.filter.value = { ...model.filter.value, job };
  const timer = setInterval(model.tick, 1000);
  element.classList.add("tf-root");
  render(html`<${Page} model=${model} />`, element);
  transport.follow(model.hear);
  return () => {
    clearInterval(timer);
    if (transport.stop) transport.stop();
    render(null, element);
  };
}
