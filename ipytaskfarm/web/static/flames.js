// The flame graph: where tasks spend their time.  Callees stand below their caller; a click on one makes it the whole width.

import { useEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
import { count, span, things } from "./format.js";
import { html, Section, Empty } from "./html.js";

const ROW = 19;
const NARROWEST = 0.0015; // of the width; a narrower function is left out, and so are its callees
const EVERY_MS = 5000;
const COLOURS = 8;

// [[depth, label, samples], …], callers first -> the same as nodes that know their callees and their caller.
function tree(rows) {
  const nodes = [];
  const path = [];
  for (const [depth, label, samples] of rows) {
    const node = { label, samples, depth, callees: [], caller: depth ? path[depth - 1] : null, index: nodes.length };
    if (node.caller) node.caller.callees.push(node);
    path[depth] = node;
    nodes.push(node);
  }
  return nodes;
}

function boxes(whole) {
  const found = [];
  const add = (node, x, depth) => {
    const width = node.samples / whole.samples;
    if (width < NARROWEST) return;
    found.push({ node, x, width, depth });
    let from = x;
    for (const callee of node.callees) {
      add(callee, from, depth + 1);
      from += callee.samples / whole.samples;
    }
  };
  add(whole, 0, 0);
  return found;
}

// The functions with the most samples of their own, as text for those who cannot use the picture.
function largest(nodes) {
  const own = new Map();
  const all = new Map();
  for (const node of nodes) {
    if (!node.caller) continue;
    own.set(node.label, (own.get(node.label) || 0) + node.samples - node.callees.reduce((sum, each) => sum + each.samples, 0));
    let above = node.caller;
    while (above && above.label !== node.label) above = above.caller;
    if (!above) all.set(node.label, (all.get(node.label) || 0) + node.samples); // a recursive function counts once
  }
  return [...own].sort((a, b) => b[1] - a[1]).slice(0, 15).map(([label, samples]) => [label, samples, all.get(label)]);
}

function colour(label) {
  let sum = 0;
  for (const char of label) sum = (sum * 31 + char.codePointAt(0)) >>> 0;
  return 1 + (sum % COLOURS);
}

function Graph({ nodes, unit }) {
  const [zoomed, setZoomed] = useState(""); // the labels from the whole to the node that has the whole width
  const [shown, setShown] = useState(null);
  const picture = useRef(null);
  const pathOf = (node) => { const labels = []; for (let each = node; each; each = each.caller) labels.unshift(each.label); return labels.join("\n"); };
  const whole = (zoomed && nodes.find((node) => pathOf(node) === zoomed)) || nodes[0];
  const drawn = useMemo(() => boxes(whole), [nodes, whole]);
  const told = (node) => `${node.label}: ${span(node.samples * unit)}, ${(100 * node.samples / nodes[0].samples).toFixed(1)} % (${things(node.samples, "sample")})`;
  const height = ROW * (1 + Math.max(...drawn.map((box) => box.depth)));
  const focus = (index) => { const box = picture.current && picture.current.querySelector(`[data-index="${index}"]`); if (box) box.focus(); };
  const zoom = (node) => { setZoomed(node.caller ? pathOf(node) : ""); setShown(node); };
  const keys = (event, box) => {
    const { node } = box;
    const siblings = node.caller ? node.caller.callees : [node];
    const next = { ArrowDown: node.callees[0], ArrowUp: node === whole ? null : node.caller, ArrowLeft: siblings[siblings.indexOf(node) - 1], ArrowRight: siblings[siblings.indexOf(node) + 1] };
    if (event.key === "Enter" || event.key === " ") zoom(node);
    else if (event.key === "Escape") zoom(nodes[0]);
    else if (event.key in next) { if (next[event.key]) focus(next[event.key].index); }
    else return;
    event.preventDefault();
  };
  const callers = [];
  for (let each = whole.caller; each; each = each.caller) callers.unshift(each);
  return html`<div class="tf-flames-path">${callers.map((node) => html`<button type="button" class="tf-link" onClick=${() => zoom(node)}>${node.caller ? node.label : "all"}</button><span aria-hidden="true"> › </span>`)}<b>${whole.caller ? whole.label : "all"}</b></div>
    <div class="tf-scroll tf-flames"><svg ref=${picture} width="100%" height=${height} role="group" aria-label="Flame graph: arrow keys move, Enter shows a function alone, Escape shows all">
      ${drawn.map((box) => html`<svg key=${box.node.index} x=${`${box.x * 100}%`} y=${box.depth * ROW} width=${`${box.width * 100}%`} height=${ROW - 1} data-index=${box.node.index}
        class="tf-flame" data-name=${colour(box.node.label)} role="button" tabindex=${box.node === whole ? 0 : -1} aria-label=${told(box.node)}
        onClick=${() => zoom(box.node)} onKeyDown=${(event) => keys(event, box)} onFocus=${() => setShown(box.node)} onMouseEnter=${() => setShown(box.node)}>
        <rect width="100%" height="100%" /><text x="5" y="13">${box.node.caller ? box.node.label : "all"}</text></svg>`)}
    </svg></div>
    <p class="tf-stream-text tf-muted" role="status">${shown ? told(shown) : "Wide functions took long. A click on one shows it alone."}</p>`;
}

export function Flames({ model }) {
  const live = model.transport.live;
  const [open, setOpen] = useState(!live);
  const [engine, setEngine] = useState(null);
  const [found, setFound] = useState(null);
  const [error, setError] = useState("");
  const asked = useRef(0);
  const engines = Object.keys(model.section("engines", {}).value).map(Number).sort((a, b) => a - b);
  const look = async () => {
    const own = ++asked.current;
    try {
      const answer = await model.transport.ask("profile", { engine_id: engine });
      if (own === asked.current) { setFound(answer); setError(""); }
    } catch (problem) { if (own === asked.current) setError(problem.message); }
  };
  useEffect(() => {
    if (!open) return undefined;
    look();
    const timer = live ? setInterval(() => { if (!document.hidden && model.there.value) look(); }, EVERY_MS) : 0;
    return () => { clearInterval(timer); asked.current++; };
  }, [open, engine]);
  const isGone = engine !== null && !engines.includes(engine);
  useEffect(() => { if (isGone && model.there.value) setEngine(null); }, [isGone]);
  const sample = async (on) => { if (await model.act("sample", { on })) look(); };
  const nodes = useMemo(() => (found && found.samples ? tree(found.rows) : []), [found]);
  const sampled = found && found.sampled;
  const missing = found ? found.asked - found.answered : 0;
  let aside = "";
  if (open && found && found.samples) aside = `${span(found.samples * found.interval_s)} on ${things(found.engines.length, "engine")}`;
  return html`<${Section} id="tf-flames" title="Where time goes" aside=${aside} wide>
    ${live ? html`<div class="tf-toolbar"><button type="button" aria-expanded=${open} onClick=${() => setOpen(!open)}>${open ? "Hide the flame graph" : "Show the flame graph"}</button>
      ${open && engines.length > 1 ? html`<label class="tf-muted">of <select aria-label="Engine" value=${engine === null ? "" : engine} onChange=${(event) => setEngine(event.target.value === "" ? null : Number(event.target.value))}><option value="">all engines</option>${engines.map((id) => html`<option value=${id}>engine ${id}</option>`)}</select></label>` : null}
      ${open && found && model.may.value ? html`<span class="tf-push"></span><button type="button" class="tf-small" onClick=${() => sample(!sampled)}>${sampled ? "Stop sampling" : "Start sampling"}</button>` : null}</div>` : null}
    ${error ? html`<p class="tf-trouble" role="alert">${error}</p>` : null}
    ${!open ? null : !found ? (error ? null : html`<p class="tf-muted">Asking the engines …</p>`)
      : nodes.length ? html`<${Graph} nodes=${nodes} unit=${found.interval_s} />
        <details><summary>The functions with the most time of their own</summary><div class="tf-scroll" tabindex="0" role="region" aria-label="Functions"><table><thead><tr><th scope="col">function</th><th scope="col" class="tf-right">itself</th><th scope="col" class="tf-right">with its callees</th></tr></thead>
          <tbody>${largest(nodes).map(([label, own, all]) => html`<tr><td class="tf-clip">${label}</td><td class="tf-right">${span(own * found.interval_s)}</td><td class="tf-right">${span(all * found.interval_s)}</td></tr>`)}</tbody></table></div></details>`
      : html`<${Empty}>${sampled ? "The engines are sampled; no task has run since." : "The engines are not sampled. tc.sampling.start() begins it: fifty looks a second, which cost less than 2 %."}<//>`}
    ${open && missing > 0 ? html`<p class="tf-muted">${things(missing, "engine")} did not answer: C code may keep them busy.</p>` : null}
    ${open && found && found.left_out ? html`<p class="tf-muted">${things(found.left_out, "function")} with few samples not shown.</p>` : null}
    ${open && found && engine === null && found.total > found.asked && found.asked ? html`<p class="tf-muted">The first ${count(found.asked)} of ${things(found.total, "engine")}.</p>` : null}
  <//>`;
}
