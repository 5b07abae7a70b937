// Engines and nodes: what they do, and since when.

import { useState, useEffect } from "./vendor/hooks.js";
import { count, size, span, things, withCells } from "./format.js";
import { html, Section, Empty, Bar, Skip, Task, showTasks, unknown } from "./html.js";

const PAGE = 100;
const EVERY_MS = 2000;
const LOSSES_SHOWN = 20; // as the picture has
const NODES = 12;
const NODES_OF_MANY = 4;

const isOdd = (node) => node.state !== "up" || Boolean(node.guard);
// Nodes that need a look come first, the others by name: node9 before node10.
const byNeed = ([a, one], [b, other]) => isOdd(other) - isOdd(one) || placeOf(a, one).localeCompare(placeOf(b, other), undefined, { numeric: true });

// The machine, and the agent there if it has a name of its own.
const placeOf = (name, node) => (node.node && node.node !== name ? `${node.node} ${name}` : name);

function Node({ model, name, node }) {
  const used = node.memory ? 1 - (node.free_memory || 0) / node.memory : 0;
  const odd = isOdd(node);
  return html`<li class="tf-node">
    <div class="tf-job-line"><b class="tf-name">${node.node || name}</b>${node.node && node.node !== name ? html`<span class="tf-muted">${name}</span>` : null}${odd ? html`<span class="tf-tag" data-bad=${node.state !== "up"}>${node.guard || node.state}</span>` : null}<span class="tf-push"></span>
      ${model.may.value && node.node ? html`<button type="button" class="tf-small" onClick=${() => model.act("drain", { node: node.node, on: node.state !== "drained" })}>${node.state === "drained" ? "Give it tasks again" : "Drain"}</button>` : null}</div>
    <div class="tf-gauges">
      <span>load<${Bar} parts=${[["running", Math.min(1, node.load || 0)]]} label=${`load ${Math.round((node.load || 0) * 100)} %`} /><small>${node.load === null ? "" : `${Math.round(node.load * 100)} % of ${things(node.cores, "core")}`}</small></span>
      <span>memory<${Bar} parts=${[[used > 0.95 ? "failed" : "running", used]]} label=${`memory ${Math.round(used * 100)} % used`} /><small>${node.free_memory ? `${size(node.free_memory)} free of ${size(node.memory)}` : ""}</small></span>
    </div></li>`;
}

function Memory({ engine }) {
  if (engine.memory === null || engine.memory === undefined) return "";
  if (!engine.memory_limit) return size(engine.memory);
  const share = engine.memory / engine.memory_limit;
  return html`${size(engine.memory)} <small class="tf-muted tf-optional tf-spare">of ${size(engine.memory_limit)}</small><${Bar} parts=${[[share > 0.9 ? "failed" : "running", Math.min(1, share)]]} label=${`${Math.round(share * 100)} % of the memory limit`} />`;
}

function Frozen({ model, engine }) {
  const left = engine.ends_s - model.seen.value;
  return html`<li class="tf-job-line"><span class="tf-tag">${engine.state}</span><span>task <${Task} model=${model} id=${engine.task} /></span>
    <span class="tf-muted">${engine.error}${engine.place ? ` in ${withCells(engine.place)}` : ""}; engine ${engine.id} on ${engine.node}, ${left > 0 ? `kept for another ${span(left)} unless it is used` : "about to end"}</span>
    <span class="tf-push"></span>${model.may.value && engine.state !== "ending" ? html`<button type="button" class="tf-small" onClick=${() => model.act("release", { id: engine.task })}>Release</button>` : null}</li>`;
}

function Scale({ model, wanted }) {
  const [number, setNumber] = useState(null);
  const value = number === null ? wanted : number;
  const submit = async (event) => { event.preventDefault(); await model.act("scale", { engines: Number(value) }); setNumber(null); };
  return html`<form class="tf-scale" onSubmit=${submit}><label>engines <input type="number" min="0" max="10000" value=${value} onInput=${(event) => setNumber(event.target.value)} /></label><button type="submit" class="tf-small" disabled=${number === null || Number(number) === wanted}>Set</button></form>`;
}

export function Engines({ model }) {
  const here = model.section("engines", {}).value;
  const total = model.section("engines_total", 0).value;
  const states = model.section("engine_states", null).value;
  const nodes = model.section("nodes", {}).value;
  const frozen = model.section("frozen", []).value;
  const losses = model.section("losses", []).value;
  const wanted = model.section("wanted", 0).value;
  const [first, setFirst] = useState(0);
  const [further, setFurther] = useState({});
  useEffect(() => { // the picture has the first page alone
    if (!first) return undefined;
    let over = false;
    const look = () => model.transport.ask("engines", { first, count: PAGE }).then((found) => { if (!over) setFurther(found.rows); });
    look().catch(() => setFirst(0));
    const timer = setInterval(() => { if (model.transport.live && !document.hidden && model.there.value) look().catch(() => {}); }, EVERY_MS);
    return () => { over = true; clearInterval(timer); };
  }, [first]);
  useEffect(() => { if (first && first >= total) setFirst(Math.max(0, Math.floor((total - 1) / PAGE) * PAGE)); }, [first, total]); // there are fewer now
  // Of many nodes those that need a look are shown, and a few others: all with nothing to say would fill the window.
  const names = Object.keys(nodes).length;
  const shown = names <= NODES ? names : Math.max(NODES_OF_MANY, Math.min(NODES, Object.values(nodes).filter(isOdd).length));
  const engines = first ? further : here;
  const rows = Object.entries(engines).sort(([a], [b]) => a - b);
  const now = model.seen.value;
  const words = Object.entries(states || {}).map(([state, number]) => `${count(number)} ${state}`).join(", ");
  return html`<${Section} id="tf-engines" title="Engines and nodes" aside=${words}>
    ${names ? html`<ul class="tf-list tf-nodes">${Object.entries(nodes).sort(byNeed).slice(0, shown).map(([name, node]) => html`<${Node} key=${name} model=${model} name=${name} node=${node} />`)}</ul>` : null}
    ${names > shown ? html`<p class="tf-muted">${things(names - shown, "more node")}</p>` : null}
    ${rows.length ? html`<${Skip} rows=${rows.length}><div class="tf-scroll tf-short" tabindex="0" role="region" aria-label="Engines"><table><thead><tr><th scope="col">engine</th><th scope="col">state</th><th scope="col">task</th><th scope="col" class="tf-right">for</th><th scope="col" class="tf-right">memory</th><th scope="col" class="tf-right tf-optional">ended</th><th scope="col" class="tf-right tf-optional">up for</th><th scope="col" class="tf-optional tf-spare">node</th></tr></thead>
      <tbody>${rows.map(([id, engine]) => html`<tr key=${id}><td><button type="button" class="tf-link" aria-label=${`engine ${id}: show its tasks`} onClick=${() => showTasks(model, { engine_id: Number(id) })}>${id}</button></td>
        <td><span class="tf-dot" data-state=${engine.state}></span>${engine.state}${engine.note ? html`<small class="tf-muted"> ${engine.note}</small>` : null}</td>
        <td class="tf-clip">${engine.task >= 0 ? html`<${Task} model=${model} id=${engine.task} />` : ""}${engine.ahead ? html` <small class="tf-muted">+${count(engine.ahead)}</small>` : ""}${engine.task >= 0 ? html` <span class="tf-muted">${engine.name}</span>` : ""}</td>
        <td class="tf-right">${engine.task >= 0 ? span(now - engine.since_s) : ""}</td><td class="tf-right"><${Memory} engine=${engine} /></td><td class="tf-right tf-optional">${count(engine.finished)}</td><td class="tf-right tf-optional">${engine.started_s ? span(now - engine.started_s) : ""}</td><td class="tf-optional tf-spare tf-muted">${engine.node}</td></tr>`)}</tbody></table></div><//>` : html`<${Empty}>${!states ? unknown(model) : wanted ? `No engine is there yet: ${count(wanted)} ${wanted === 1 ? "is" : "are"} wanted.` : "There is no engine."}<//>`}
    ${total > PAGE ? html`<div class="tf-actions"><button type="button" class="tf-small" disabled=${!first} onClick=${() => setFirst(Math.max(0, first - PAGE))}>Previous</button><span class="tf-muted">${count(first + 1)}–${count(Math.min(total, first + PAGE))} of ${count(total)}</span><button type="button" class="tf-small" disabled=${first + PAGE >= total} onClick=${() => setFirst(first + PAGE)}>Next</button></div>` : null}
    ${frozen.length ? html`<h3>Frozen for a debugger</h3><ul class="tf-list tf-frozen">${frozen.map((engine) => html`<${Frozen} key=${engine.task} model=${model} engine=${engine} />`)}</ul>` : null}
    ${losses.length ? html`<details open=${!rows.length}><summary>${losses.length === 1 ? "One engine was lost" : `${losses.length < LOSSES_SHOWN ? "" : "at least "}${losses.length} engines were lost`}</summary><ul class="tf-losses">${[...losses].reverse().map((line) => html`<li>${line}</li>`)}</ul></details>` : null}
    ${model.may.value ? html`<${Scale} model=${model} wanted=${wanted} />` : null}
  <//>`;
}
