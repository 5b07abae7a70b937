// The page as a widget of anywidget, which calls `makeWidget` once for each model.  `style` is given when the modules
// become one, see adapters/live_widget.py.

import { mountInside } from "./shadow.js";
import { commFarm } from "./comm.js";

// Beside the widget is the state as a table, for whoever opens the notebook without its kernel (adapters/saved_view.py).
// While the widget is here, the table is hidden.
const LIVE = "ipytaskfarm-live";
function hideLastState() {
  if (document.getElementById(LIVE)) return;
  const sheet = Object.assign(document.createElement("style"), { id: LIVE });
  sheet.textContent = `.jp-OutputArea:has(.${LIVE}) > .jp-OutputArea-child:has(.ipytaskfarm-last-state) { display: none; }`;
  document.head.append(sheet);
}

export function makeWidget(style) {
  let farm = null;
  return {
    initialize({ model }) {
      farm = commFarm(model);
      return () => farm.stop();
    },
    render({ model, el }) {
      const host = document.createElement("div");
      host.classList.add(LIVE);
      el.append(host);
      hideLastState();
      const sheet = document.createElement("style");
      sheet.textContent = style;
      return mountInside(host, [sheet], () => farm.transport(), { job: model.get("job") });
    },
  };
}
