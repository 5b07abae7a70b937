// The live view in tabs of JupyterLab's main area.

import { make } from "./dom.js";

const HIDDEN_MS = 60000;

export function farmPages(app, { apputils, widgets }, server, icon) {
  const tracker = new apputils.WidgetTracker({ namespace: "ipytaskfarm" });
  const modules = Promise.all(["shadow.js", "socket.js"].map((name) => import(server.base + name)));
  modules.catch(() => {}); // the tab that needs them says so

  // A page that follows its farm while it is shown, and for a minute more.
  class FarmPage extends widgets.Widget {
    constructor(farm, job) {
      super({ node: make("div", { class: "tf-lab-page", tabindex: "-1" }) });
      this.farm = farm;
      this.job = job;
      this.unmount = null;
      this.timer = 0;
    }

    onAfterShow() { this.begin(); }
    onAfterAttach() { if (this.isVisible) this.begin(); }
    onBeforeDetach() { this.end(); }
    onActivateRequest() { this.node.focus(); }
    onAfterHide() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.end(), HIDDEN_MS);
    }

    begin() {
      clearTimeout(this.timer);
      if (this.unmount) return;
      let over = false;
      this.unmount = () => { over = true; };
      modules.then(([{ mountInside }, { socketTransport }]) => {
        if (over) return;
        const styles = ["vendor/uplot.css", "page.css"].map((path) => make("link", { rel: "stylesheet", href: server.base + path }));
        const transport = () => socketTransport({ socketUrl: server.socketUrl(this.farm), act: (what, args) => server.act(this.farm, what, args) });
        this.unmount = mountInside(this.node, styles, transport, { job: this.job });
      }).catch((error) => { this.node.textContent = `Jupyter's server does not serve this page: ${error.message}`; });
    }

    end() {
      clearTimeout(this.timer);
      if (this.unmount) this.unmount();
      this.unmount = null;
    }
  }

  // A job has a tab of its own: the page with its tasks.
  function open(farm, job = null) {
    const found = tracker.find((tab) => tab.content.farm === farm && tab.content.job === job);
    const tab = found || new apputils.MainAreaWidget({ content: new FarmPage(farm, job) });
    if (!found) {
      tab.id = `ipytaskfarm-${farm}${job ? `-${job}` : ""}`;
      tab.title.label = job ? `${farm}: a job` : farm;
      tab.title.caption = `Task farm ${farm}`;
      tab.title.icon = icon;
      tab.title.closable = true;
      tab.toolbar.hide();
      app.shell.add(tab, "main", { type: "Task Farm" });
      tracker.add(tab);
    }
    app.shell.activateById(tab.id);
    return tab;
  }

  return {
    open,
    restore: (restorer) => restorer.restore(tracker, { command: "ipytaskfarm:open", args: (tab) => ({ farm: tab.content.farm, job: tab.content.job }), name: (tab) => tab.id.replace("ipytaskfarm-", "") }),
  };
}
