// Runs a notebook's cell on the farm: the cell itself says so, by %%task in its first line.

export function runsPython(panel) {
  const cell = panel && panel.content.activeCell;
  if (!cell || cell.model.type !== "code") return false;
  const { language } = panel.sessionContext.kernelPreference;
  return (language || panel.content.model.defaultKernelLanguage || "python") === "python";
}

export async function runCell(app, panel) {
  if (!runsPython(panel)) return;
  const source = panel.content.activeCell.model.sharedModel;
  const code = source.getSource();
  if (!code.trim()) return;
  await panel.sessionContext.ready;
  const kernel = panel.sessionContext.session && panel.sessionContext.session.kernel;
  // The same as the user's own line `%load_ext ipytaskfarm`; a second time it does nothing, and says so to nobody.
  if (kernel) kernel.requestExecute({ code: "%load_ext ipytaskfarm", silent: true, store_history: false });
  if (!/^%%task\b/.test(code.trimStart())) source.setSource(`%%task\n${code}`);
  await app.commands.execute("notebook:run-cell");
}
