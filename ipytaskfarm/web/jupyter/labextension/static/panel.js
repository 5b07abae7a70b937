// The panel of the farms: what runs, what it does; start, stop, scale, open.

import { make, numbers } from "./dom.js";
import { PANEL_MS } from "./server.js";

const SAID_MS = 30000;

export function farmPanel({ apputils, widgets }, server, open, icon) {
  const list = make("ul", { class: "tf-lab-list", "aria-label": "Task farms" });
  const none = make("p", { class: "tf-lab-muted" }, "No farm runs here.");
  const said = make("p", { class: "tf-lab-said", role: "status" });
  const rows = new Map();
  let silence = 0;

  // What was done is true at that time: a while later it would only contradict what the rows say.
  function say(text, bad = false, stays = true) {
    clearTimeout(silence);
    if (!stays) silence = setTimeout(() => say(""), SAID_MS);
    said.textContent = text;
    said.dataset.bad = bad;
  }

  // Do something that takes a moment, with the buttons of its form or row switched off.
  async function during(element, text, action) {
    const buttons = [...element.querySelectorAll("button")];
    for (const button of buttons) button.disabled = true;
    say(text);
    try { say(await action(), false, false); }
    catch (error) { say(error.message, true); }
    for (const button of buttons) button.disabled = false;
    await server.refresh();
  }

  function row(name) {
    const state = make("span", { class: "tf-lab-dot" });
    const title = make("button", { type: "button", class: "tf-lab-name", title: `Show task farm ${name}`, on: { click: () => open(name) } }, name);
    const engines = make("span", {}), tasks = make("span", {});
    const number = make("input", { type: "number", min: "0", max: "10000", "aria-label": `engines of farm ${name}` });
    const scale = make("form", { class: "tf-lab-scale", on: { submit: (event) => {
      event.preventDefault();
      during(item, "…", async () => (await server.act(name, "scale", { engines: Number(number.value) })).text).then(() => number.blur());
    } } }, make("label", {}, "engines ", number), make("button", { type: "submit" }, "Set"));
    const button = (word, then) => make("button", { type: "button", "aria-label": `${word} farm ${name}`, on: { click: then } }, word);
    const start = button("Start", () => during(item, `starting farm ${name} …`, () => server.start(name, null)));
    const stop = button("Stop", async () => {
      const warning = "No new task begins, running ones have ten seconds. What waits, and all results, are kept for the next start.";
      const sure = await apputils.showDialog({ title: `Stop task farm ${name}?`, body: warning, buttons: [apputils.Dialog.cancelButton(), apputils.Dialog.warnButton({ label: "Stop" })] });
      if (sure.button.accept) during(item, `stopping farm ${name} …`, () => server.stop(name));
    });
    const show = button("Open", () => open(name));
    const text = make("div", { class: "tf-lab-muted" }, engines, tasks);
    const item = make("li", { class: "tf-lab-farm", "data-farm": name }, make("div", { class: "tf-lab-line" }, state, title), text, make("div", { class: "tf-lab-line" }, show, stop, start, scale));
    return {
      item,
      renew(farm) {
        item.dataset.running = farm.running;
        state.title = farm.running ? "running" : "stopped";
        const words = farm.counts ? numbers(farm) : { engines: farm.running ? farm.error || "…" : "stopped; its tasks and results are kept", tasks: "" };
        engines.textContent = words.engines;
        tasks.textContent = words.tasks ? ` · ${words.tasks}` : "";
        show.hidden = !farm.running;
        stop.hidden = !farm.running || farm.control === false; // a reader's connection changes nothing
        scale.hidden = !farm.counts || farm.control === false;
        start.hidden = farm.running || !farm.lasting;
        if (farm.counts && document.activeElement !== number) number.value = farm.wanted;
      },
    };
  }

  function heard({ farms, error }) {
    if (error) say(error, true);
    else if (said.dataset.bad === "true" && said.textContent.includes("Jupyter's server")) say("");
    const order = [...farms].sort((a, b) => b.running - a.running || a.name.localeCompare(b.name));
    for (const name of rows.keys()) if (!farms.some((farm) => farm.name === name)) { rows.get(name).item.remove(); rows.delete(name); }
    order.forEach((farm, n) => {
      if (!rows.has(farm.name)) rows.set(farm.name, row(farm.name));
      const { item, renew } = rows.get(farm.name);
      if (list.children[n] !== item) list.insertBefore(item, list.children[n] || null);
      renew(farm);
    });
    none.hidden = farms.length > 0 || Boolean(error);
  }

  const name = make("input", { type: "text", value: "default", required: "", maxlength: "48", spellcheck: "false" });
  const engines = make("input", { type: "number", min: "0", max: "10000", placeholder: "one per core" });
  const form = make("form", { class: "tf-lab-start", on: { submit: (event) => {
    event.preventDefault();
    const count = engines.value === "" ? null : Number(engines.value);
    during(form, `starting farm ${name.value} …`, () => server.start(name.value, count));
  } } }, make("h3", {}, "Start a farm"), make("label", {}, "name", name), make("label", {}, "engines", engines), make("button", { type: "submit", class: "tf-lab-primary" }, "Start"));

  class FarmPanel extends widgets.Widget {
    onAfterShow() { server.follow(heard, PANEL_MS); }
    onAfterAttach() { if (this.isVisible) server.follow(heard, PANEL_MS); }
    onAfterHide() { server.unfollow(heard); }
    onBeforeDetach() { server.unfollow(heard); }
  }

  const style = make("link", { rel: "stylesheet", href: new URL("lab.css", import.meta.url).href });
  document.head.append(style);
  const panel = new FarmPanel({ node: make("div", { class: "tf-lab-panel" }, make("h2", {}, "Task farms"), list, none, said, form) });
  panel.id = "ipytaskfarm-panel";
  panel.title.caption = "Task farms";
  panel.title.icon = icon;
  return panel;
}
