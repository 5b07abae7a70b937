// The ends of the farm's logs, read when they are opened.

import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { html, Section, Empty } from "./html.js";

export function Logs({ model }) {
  const [open, setOpen] = useState(false);
  const [name, setName] = useState(null);
  const [found, setFound] = useState({ names: [], text: "" });
  const text = useRef(null);
  const look = () => model.transport.ask("logs", { name }).then(setFound).catch((error) => setFound({ names: [], text: error.message }));
  useEffect(() => { if (open) look(); }, [open, name]);
  useEffect(() => { if (text.current) text.current.scrollTop = text.current.scrollHeight; }, [found]);
  const aside = html`<div class="tf-toolbar">${open && found.names.length ? html`<label>log <select value=${name || found.names[0]} onChange=${(event) => setName(event.target.value)}>${found.names.map((each) => html`<option value=${each}>${each}</option>`)}</select></label><button type="button" onClick=${look}>Refresh</button>` : null}
    <button type="button" aria-expanded=${open} onClick=${() => setOpen(!open)}>${open ? "Hide" : "Show"}</button></div>`;
  return html`<${Section} id="tf-logs" title="Logs" aside=${aside} wide>
    ${open ? (found.text || found.names.length ? html`<pre ref=${text} class="tf-text tf-log" tabindex="0" aria-label="Log">${found.text || "This log is empty."}</pre>` : html`<${Empty}>The farm's logs are on another machine.<//>`) : null}
  <//>`;
}
