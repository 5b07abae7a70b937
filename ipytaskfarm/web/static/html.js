// Templates, and small parts that several sections use.

import { h } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);

export function Section({ title, id, aside, children, wide }) {
  return html`<section class=${wide ? "tf-card tf-wide" : "tf-card"} aria-labelledby=${`${id}-title`} id=${id}>
    <div class="tf-head"><h2 id=${`${id}-title`} tabindex="-1">${title}</h2>${aside ? html`<div class="tf-aside">${aside}</div>` : null}</div>
    ${children}
  </section>`;
}

// What stands for something that is not known: for now, or until the farm is there again.
export const unknown = ({ there, line }) => (there.value || line.value.state === "connecting" ? "…" : "Not known while the farm is not there.");

export const Empty = ({ children }) => html`<p class="tf-empty">${children}</p>`;

export function Task({ model, id }) {
  return html`<button type="button" class="tf-link" onClick=${() => (model.opened.value = id)} aria-label=${`task ${id}: details`}>${id}</button>`;
}

// A bar with parts [[state, share of 1], …].  The numbers stand beside it as text.
export function Bar({ parts, label }) {
  let x = 0;
  const rects = parts.map(([state, share]) => {
    const from = x;
    x += share;
    return html`<rect x=${from * 100} y="0" width=${Math.max(0, share * 100)} height="8" data-state=${state} />`;
  });
  return html`<svg class="tf-bar" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label=${label}>${rects}</svg>`;
}

// Lets a person with a keyboard pass by a table in which each row can be stopped at.
export const Skip = ({ children, rows }) => html`${rows > 8 ? html`<button type="button" class="tf-skip" onClick=${(event) => event.currentTarget.parentNode.querySelector(".tf-after").focus()}>Skip the table</button>` : null}
    ${children}<span class="tf-after" tabindex="-1"></span>`;

export function showTasks(model, filter) {
  model.filter.value = { state: "", text: "", job: null, cause: null, engine_id: null, ...filter };
  const table = model.element.querySelector("#tf-tasks"); // the document may have several pages, as JupyterLab does
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!table) return;
  table.querySelector("h2").focus({ preventScroll: true }); // the next Tab goes on there
  table.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}
