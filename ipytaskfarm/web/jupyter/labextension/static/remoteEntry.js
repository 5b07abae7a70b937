// The entry of this extension in webpack's protocol for shared modules, written by hand: JupyterLab loads this script,
// gives `init` its own modules, and asks `get` for the extension.  There is nothing to build.
(() => {
  const here = document.currentScript.src;
  let shared = {};

  // A module of JupyterLab; null: this application has none of that name.
  async function lab(name) {
    const versions = Object.values(shared[name] || {});
    const entry = versions.find((version) => version.loaded) || versions[0];
    return entry ? (await entry.get())() : null;
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB.ipytaskfarm = {
    init(scope) { shared = scope; },
    async get(name) {
      if (name !== "./extension") throw new Error(`ipytaskfarm has no module ${name}`);
      const { plugins } = await import(new URL("extension.js", here).href);
      const found = await plugins(lab);
      return () => ({ __esModule: true, default: found });
    },
  };
})();
