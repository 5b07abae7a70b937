// A priority that can be changed: of a task, or of a job.

import { useState } from "./vendor/hooks.js";
import { html } from "./html.js";

export function Priority({ label, value, set }) {
  const [open, setOpen] = useState(false);
  const [number, setNumber] = useState("");
  const whole = /^-?\d{1,15}$/.test(number);
  const submit = async (event) => { event.preventDefault(); if (whole && (await set(Number(number)))) setOpen(false); };
  if (!open) return html`<button type="button" class="tf-small" aria-label=${`Priority of ${label}`} onClick=${() => { setNumber(String(value || 0)); setOpen(true); }}>Priority</button>`;
  return html`<form class="tf-priority" onSubmit=${submit}><label>priority <input type="number" step="1" value=${number} aria-label=${`New priority of ${label}; higher ones start first`} onInput=${(event) => setNumber(event.target.value)} /></label>
    <button type="submit" class="tf-small" disabled=${!whole}>Set</button><button type="button" class="tf-small" onClick=${() => setOpen(false)}>Cancel</button></form>`;
}
