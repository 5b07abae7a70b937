// The plugin: commands, launcher card, panel, page in a tab, status bar, and the button of cells.

import { farmServer } from "./server.js";
import { farmPanel } from "./panel.js";
import { farmPages } from "./pages.js";
import { statusItem } from "./status.js";
import { runCell, runsPython } from "./cells.js";
import { ICON } from "./icon.js";

const CATEGORY = "Task farm";

export async function plugins(lab) {
  const names = ["application", "apputils", "launcher", "notebook", "services", "settingregistry", "statusbar", "ui-components"];
  const [application, apputils, launcher, notebook, services, settingregistry, statusbar, ui] = await Promise.all(names.map((name) => lab(`@jupyterlab/${name}`)));
  const widgets = await lab("@lumino/widgets");
  // Notebook 7 has fewer of these than JupyterLab: each is used where it is.
  const wanted = {
    restorer: application.ILayoutRestorer, palette: apputils.ICommandPalette, launcher: launcher && launcher.ILauncher,
    tracker: notebook && notebook.INotebookTracker, settings: settingregistry && settingregistry.ISettingRegistry, statusBar: statusbar && statusbar.IStatusBar,
  };
  const tokens = Object.entries(wanted).filter(([, token]) => token);
  const modules = { application, apputils, notebook, services, widgets };
  return [{
    id: "ipytaskfarm:plugin",
    description: "Task farms: a panel, the live view, the status bar, and a button that runs a cell on a farm.",
    autoStart: true,
    optional: tokens.map(([, token]) => token),
    activate: (app, ...given) => {
      const services = Object.fromEntries(tokens.map(([name], n) => [name, given[n] || null]));
      activate(app, services, modules, new ui.LabIcon({ name: "ipytaskfarm:icon", svgstr: ICON }));
    },
  }];
}

function activate(app, { restorer, palette, launcher, tracker, settings, statusBar }, modules, icon) {
  const { apputils, services, widgets } = modules;
  const server = farmServer(services.ServerConnection, app.serviceManager.serverSettings);
  // Notebook 7 has no place for a page beside the notebook: there it is another tab of the browser.
  const pages = app.name === "JupyterLab" ? farmPages(app, modules, server, icon) : null;
  const open = (farm, job) => (pages ? pages.open(farm, job) : window.open(server.pageUrl(farm)));

  app.commands.addCommand("ipytaskfarm:open", {
    label: (args) => (args.farm ? `Task Farm ${args.farm}` : args.isLauncher ? "Task Farm" : "Task Farm: Show a Farm"),
    caption: "Show a farm at work: failures, jobs, engines, the task stream",
    icon: (args) => (args.isPalette ? undefined : icon),
    execute: async (args) => {
      const farm = args.farm || (await chooseFarm(server, apputils));
      return farm ? open(farm, args.job) : undefined;
    },
  });
  app.commands.addCommand("ipytaskfarm:panel", {
    label: "Task Farm: Show the Panel of the Farms",
    execute: () => app.shell.activateById("ipytaskfarm-panel"),
  });
  if (tracker) {
    const here = () => runsPython(tracker.currentWidget);
    app.commands.addCommand("ipytaskfarm:run-cell", {
      label: "Task Farm: Run the Cell on the Farm",
      caption: "Run this cell on the task farm (%%task)",
      icon,
      isEnabled: here,
      isVisible: here,
      execute: () => runCell(app, tracker.currentWidget),
    });
    tracker.currentChanged.connect(() => app.commands.notifyCommandChanged("ipytaskfarm:run-cell"));
    tracker.activeCellChanged.connect(() => app.commands.notifyCommandChanged("ipytaskfarm:run-cell"));
  }

  const panel = farmPanel(modules, server, open, icon);
  app.shell.add(panel, "left", { rank: 650 });
  if (restorer) restorer.add(panel, "ipytaskfarm-panel");
  if (restorer && pages) pages.restore(restorer);
  if (palette) {
    for (const name of ["open", "panel", "run-cell"]) {
      const command = `ipytaskfarm:${name}`;
      if (app.commands.hasCommand(command)) palette.addItem({ command, category: CATEGORY, args: { isPalette: true } });
    }
  }
  if (launcher) launcher.add({ command: "ipytaskfarm:open", category: "Other", rank: 5, args: { isLauncher: true } });
  if (statusBar) showNumbers(statusItem(widgets, server, (farm) => app.commands.execute("ipytaskfarm:open", { farm })), statusBar, settings);
  openLinksHere(app, pages, server);
}

async function chooseFarm(server, { InputDialog, showErrorMessage }) {
  let farms;
  try { ({ farms } = await server.look()); }
  catch (error) { await showErrorMessage("Task farm", error.message); return null; }
  const running = farms.filter((farm) => farm.running).map((farm) => farm.name);
  if (running.length === 1) return running[0];
  if (!running.length) {
    await showErrorMessage("No task farm runs here", "Start one in the panel of the farms at the left, or with `ipytaskfarm start`.");
    return null;
  }
  const chosen = await InputDialog.getItem({ title: "Which task farm?", items: running });
  return chosen.button.accept ? chosen.value : null;
}

async function showNumbers(item, statusBar, settings) {
  const loaded = settings ? await settings.load("ipytaskfarm:plugin").catch(() => null) : null;
  const wanted = () => !loaded || loaded.composite.statusBar !== false;
  item.follow(wanted());
  if (loaded) loaded.changed.connect(() => item.follow(wanted()));
  statusBar.registerStatusItem("ipytaskfarm:status", { item: item.widget, align: "left", rank: 20, isActive: item.isActive, activeStateChanged: item.changed });
}

// A link to a farm's page, as reprs have it, opens a tab of JupyterLab.
function openLinksHere(app, pages, server) {
  if (!pages) return;
  document.addEventListener("click", (event) => {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
    const page = link && server.pageOf(link.href);
    if (!page) return;
    event.preventDefault();
    event.stopPropagation();
    app.commands.execute("ipytaskfarm:open", page);
  }, true);
}
