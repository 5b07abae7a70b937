// The numbers of the farms in the status bar.

import { COUNT, make } from "./dom.js";
import { STATUS_MS } from "./server.js";

export function statusItem({ Widget }, server, open) {
  const listeners = new Set();
  const changed = { connect: (heard) => listeners.add(heard), disconnect: (heard) => listeners.delete(heard) };
  const text = make("button", { type: "button", class: "tf-lab-status" });
  const widget = new Widget({ node: make("div", { class: "tf-lab-status-item" }, text) });
  let running = [];

  function heard({ farms }) {
    const before = running.length > 0;
    running = farms.filter((farm) => farm.running && farm.counts);
    const sum = (state) => running.reduce((total, farm) => total + (farm.counts[state] || 0), 0);
    const [busy, scheduled, failed] = ["running", "scheduled", "failed"].map(sum);
    text.textContent = `Farm: ${COUNT.format(busy)} running, ${COUNT.format(scheduled)} scheduled${failed ? `, ${COUNT.format(failed)} failed` : ""}`;
    const which = running.map((farm) => farm.name).join(", ");
    text.title = running.length === 1 ? `Show task farm ${which}` : `Task farms ${which}`;
    if (before !== running.length > 0) for (const each of listeners) each();
  }
  text.addEventListener("click", () => open(running.length === 1 ? running[0].name : null));
  return {
    widget,
    changed,
    isActive: () => running.length > 0,
    follow(on) {
      if (on) server.follow(heard, STATUS_MS);
      else { server.unfollow(heard); heard({ farms: [] }); }
    },
  };
}
