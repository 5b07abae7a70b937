// What the page knows: one signal for each section of the picture, and a clock that follows the controller's.

import { computed, signal, effect } from "./vendor/signals.js";
import { apply } from "./picture.js";

const CLOCKS_DIFFER_S = 2;
export const GONE = { state: "gone", text: "", seen_s: 0 }; // the section "status" before it is known
const ALL = { state: "", text: "", job: null, cause: null, engine_id: null };

export function farmModel(transport, element) {
  const sections = new Map();
  const unknown = new Map(); // section -> what stands for it while it is not known
  let data = {};
  const section = (name, otherwise) => {
    if (!sections.has(name)) {
      unknown.set(name, otherwise);
      sections.set(name, signal(data[name] === undefined ? otherwise : data[name]));
    }
    return sections.get(name);
  };
  const line = signal({ state: "connecting", text: "" });
  const loaded = signal(false);
  const control = signal(transport.control);
  // Whether the farm answers.  What is shown is else from before: it promises nothing, and does not go on.
  const there = computed(() => line.value.state === "open" && section("status", GONE).value.state === "up");
  const may = computed(() => control.value && there.value); // whether actions are offered
  let ahead = 0; // the server's clock, compared with the browser's, if they differ so much that durations would be wrong
  const now = signal(Date.now() / 1000);
  const seen = signal(now.value); // when what is shown was true: until then lasts what goes on
  const tick = () => {
    if (transport.live) now.value = Date.now() / 1000 + ahead;
    if (there.value) seen.value = now.value;
  };
  const incarnation = signal(""); // of the farm that is shown: another one has other tasks under the same ids
  const opened = signal(null); // the task in the drawer
  const filter = signal(ALL);
  const notice = signal(null);

  const renew = (names) => {
    for (const name of names) if (sections.has(name)) sections.get(name).value = data[name] === undefined ? unknown.get(name) : data[name];
    const now_ = (data.farm || {}).incarnation;
    if (now_ && now_ !== incarnation.value) {
      if (incarnation.value) {
        opened.value = null;
        filter.value = ALL;
        notice.value = null;
      }
      incarnation.value = now_;
    }
    const { state, seen_s } = data.status || GONE;
    if (state !== "up" && seen_s) seen.value = seen_s;
  };

  function hear(said) {
    if (said.type === "picture") {
      data = said.picture;
      control.value = transport.control;
      if (data.report) now.value = seen.value = data.report.made_s;
      renew(sections.keys());
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

  return { transport, element, section, line, loaded, control, there, may, now, seen, incarnation, opened, filter, notice, hear, act, effect, tick };
}
