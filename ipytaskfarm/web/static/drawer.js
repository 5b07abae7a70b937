// One task: attempts, input, output, traceback, history.

import { useEffect, useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
import { dated, explained, moment, size, span, withCells } from "./format.js";
import { html } from "./html.js";
import { Priority } from "./priority.js";

const EVERY_MS = 2000;

const Text = ({ title, text }) => (text ? html`<h3>${title}</h3><pre class="tf-text" tabindex="0" aria-label=${title}>${text}</pre>` : null);

// Output that grows: its end stays in sight unless somebody has scrolled up.
function Growing({ title, text }) {
  const shown = useRef(null);
  const away = useRef(false);
  useLayoutEffect(() => { if (shown.current && !away.current) shown.current.scrollTop = shown.current.scrollHeight; }, [text]);
  const scrolled = ({ target }) => (away.current = target.scrollTop + target.clientHeight < target.scrollHeight - 30);
  return text ? html`<h3>${title}</h3><pre class="tf-text" tabindex="0" aria-label=${title} ref=${shown} onScroll=${scrolled}>${text}</pre>` : null;
}

function SoFar({ output }) {
  if (!output) return null;
  if (!output.answered) return html`<p class="tf-muted">What it has printed is not known now: its engine does not answer, as while C code runs.</p>`;
  return html`<${Growing} title="Output so far" text=${output.stdout} /><${Growing} title="Standard error so far" text=${output.stderr} />`;
}

const debugging = ({ id, end }) => (end.traceback ? `tc.debug(${id})           # in Python\n%task debug ${id}         # in a notebook\nipytaskfarm debug ${id}   # in a terminal` : "");

function Body({ task, output }) {
  const { end, input } = task;
  const facts = [];
  if (end) {
    facts.push(["engine", end.engine_id >= 0 ? `${end.engine_id}${end.node ? ` on ${end.node}` : ""}` : "none"]);
    if (end.run_s) facts.push(["run time", span(end.run_s)]);
    facts.push(["attempts", end.attempts], ["submitted", moment(end.submitted_s)], ["ended", moment(end.completed_s)]);
    if (end.value_bytes !== null) facts.push(["value", size(end.value_bytes)]);
    if (end.displays) facts.push(["displays", end.displays]);
  } else if (input) facts.push(["submitted", moment(input.submitted_s)]);
  if (input) facts.push(["input", size(input.bytes)]);
  return html`<p class="tf-pre">${task.why.map(explained).join("\n")}</p>
    <dl class="tf-facts">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${end ? html`<${Text} title="Traceback" text=${withCells(end.traceback)} /><${Text} title="Local variables" text=${end.variables} /><${Text} title="Debug it" text=${debugging(task)} /><${Text} title="Output" text=${end.stdout} /><${Text} title="Standard error" text=${end.stderr} />` : html`<${SoFar} output=${output} />`}
    ${input ? html`<${Text} title="Code" text=${input.code} />${input.rules ? html`<${Text} title="Rules" text=${input.rules} />` : null}` : null}
    ${task.history.length ? html`<h3>History</h3><table><tbody>${task.history.map(([at, what, engine, more]) => html`<tr><td class="tf-muted">${dated(at, true)}</td><td>${what}</td><td>${engine === null ? "" : `engine ${engine}`}</td><td class="tf-clip tf-muted">${more}</td></tr>`)}</tbody></table>` : null}`;
}

const priorityOf = ({ input }) => (input && /^priority: (-?\d+)$/m.exec(input.rules) || [0, 0])[1];

export function Drawer({ model }) {
  const id = model.opened.value;
  const [task, setTask] = useState(null);
  const [error, setError] = useState("");
  const [stack, setStack] = useState("");
  const [output, setOutput] = useState(null);
  const dialog = useRef(null);
  const shown = useRef(null);
  shown.current = id;
  // An answer that comes after another task was opened is not about that one.
  const ask = (what, then) => model.transport.ask(what, { id }).then((found) => { if (shown.current === id) { then(found); setError(""); } }).catch((problem) => { if (shown.current === id) setError(problem.message); });
  const look = () => ask("task", setTask);
  const renew = (what, then) => model.transport.ask(what, { id }).then((found) => { if (shown.current === id) then(found); }).catch(() => {}); // the page says that the farm is not there
  useLayoutEffect(() => { // with its content: a key that is pressed in between would miss it
    setTask(null);
    setError("");
    setStack("");
    setOutput(null);
    if (id === null) { if (dialog.current && dialog.current.open) dialog.current.close(); return; }
    if (!dialog.current.open) dialog.current.showModal();
    look();
  }, [id]);
  const there = model.there.value;
  useEffect(() => { if (id !== null && there) look(); }, [there]); // meanwhile the task has gone on
  const over = task && task.end;
  const runs = there && task && !over && task.history.length > 0 && task.history[task.history.length - 1][1] === "started";
  useEffect(() => { if (runs) renew("output", setOutput); else setOutput(null); }, [runs, task]);
  useEffect(() => { // a task that has not ended is followed
    if (id === null || !there || over || !model.transport.live) return undefined;
    let asked = false;
    const timer = setInterval(async () => { if (!asked && !document.hidden) { asked = true; await renew("task", setTask); asked = false; } }, EVERY_MS);
    return () => clearInterval(timer);
  }, [id, there, Boolean(over)]);
  const where = () => ask("stack", ({ text }) => setStack(text));
  const act = async (what, more) => { const done = await model.act(what, { id, ...more }); if (done && done.id) model.opened.value = done.id; else if (done) look(); return done; };
  return html`<dialog ref=${dialog} class="tf-drawer" aria-labelledby="tf-drawer-title" onClose=${() => (model.opened.value = null)} onClick=${(event) => { if (event.target === dialog.current) dialog.current.close(); }}>
    ${id === null ? null : html`<div class="tf-drawer-inside">
      <div class="tf-head"><h2 id="tf-drawer-title" tabindex="-1" autofocus>Task ${id}</h2><span class="tf-push"></span>
        ${model.may.value && task && !over ? html`<${Priority} key=${id} label=${`task ${id}`} value=${priorityOf(task)} set=${(priority) => act("priority", { priority })} /> <button type="button" onClick=${() => act("abort")}>Abort</button>` : null}
        ${model.may.value && over && over.reason ? html`<button type="button" class="tf-primary" onClick=${() => act("retry")}>Try again</button>` : null}
        ${runs ? html`<button type="button" onClick=${where}>Where is it now?</button>` : null}
        ${model.there.value ? html`<button type="button" onClick=${look}>Refresh</button>` : null}
        <button type="button" class="tf-close" aria-label="Close" onClick=${() => dialog.current.close()}>×</button></div>
      ${error ? html`<p class="tf-trouble" role="alert">${error}</p>` : null}
      ${there || !task || !model.transport.live ? null : html`<p class="tf-trouble">The farm is not there: this is how it was before.</p>`}
      <${Text} title="Where it is now" text=${withCells(stack)} />
      ${task ? html`<${Body} task=${task} output=${runs ? output : null} />` : error ? null : html`<p class="tf-muted">…</p>`}
    </div>`}
  </dialog>`;
}
