// The page as a widget of anywidget, which calls `makeWidget` once for each model.  `style` is given when the modules
// become one, see adapters/live_widget.py.

import { mountInside } from "./shadow.js";
import { commFarm } from "./comm.js";

export function makeWidget(style) {
  let farm = null;
  return {
    initialize({ model }) {
      farm = commFarm(model);
      return () => farm.stop();
    },
    render({ model, el }) {
      const host = document.createElement("div");
      el.append(host);
      const sheet = document.createElement("style");
      sheet.textContent = style;
      return mountInside(host, [sheet], () => farm.transport(), { job: model.get("job") });
    },
  };
}
