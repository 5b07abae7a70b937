// What the page knows: one signal for each section of the picture, and a clock that follows the controller's.

import { computed, signal, effect } from "./vendor/signals.js";
import { apply } from "./picture.js";

const CLOCKS_DIFFER_S = 2;
export const GONE = { state: "gone", text: "" }; // the section "status" before it is known

export function farmModel(transport, element) {
  const sections = new Map();
  let data = {};
  const section = (name, otherwise) => {
    if (!sections.has(name)) sections.set(name, signal(data[name] === undefined ? otherwise : data[name]));
    return sections.get(name);
  };
  const line = signal({ state: "connecting", text: "" });
  const loaded = signal(false);
  const control = signal(transport.control);
  // Whether actions are offered: not while the farm is not there.
  const may = computed(() => control.value && section("status", GONE).value.state !== "gone");
  let ahead = 0; // the server's clock, compared with the browser's, if they differ so much that durations would be wrong
  const now = signal(Date.now() / 1000);
  const tick = () => { if (transport.live) now.value = Date.now() / 1000 + ahead; };
  const opened = signal(null); // the task in the drawer
  const filter = signal({ state: "", text: "", job: null, cause: null, engine_id: null });
  const notice = signal(null);

  const renew = (names) => {
    for (const name of names) if (sections.has(name) && data[name] !== undefined) sections.get(name).value = data[name];
  };

  function hear(said) {
    if (said.type === "picture") {
      data = said.picture;
      control.value = transport.control;
      if (data.report) now.value = data.report.made_s;
      renew(Object.keys(data));
      loaded.value = true;
    } else if (said.type === "delta") {
      apply(data, said.operations);
      const changed = new Set(said.operations.map(([, name]) => name));
      if (changed.has("engines")) tick(); // or tasks would have begun after now
      renew(changed);
    } else if (said.type === "clock") {
      ahead = Math.abs(said.ahead) > CLOCKS_DIFFER_S ? said.ahead : 0;
      tick();
    } else if (said.type === "line") {
      line.value = { state: said.state, text: said.text };
      control.value = transport.control;
    }
  }

  async function act(what, args) {
    try {
      const value = await transport.act(what, args);
      notice.value = { text: value.text, bad: false };
      return value;
    } catch (error) {
      notice.value = { text: error.message, bad: true };
      return null;
    }
  }

  return { transport, element, section, line, loaded, control, may, now, opened, filter, notice, hear, act, effect, tick };
}
