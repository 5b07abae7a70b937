// The requests of Jupyter's server about farms, and the numbers that panel and status bar show of them.

const PANEL_MS = 2500;
const STATUS_MS = 8000;

export function farmServer(ServerConnection, settings) {
  const base = new URL("taskfarm/", settings.baseUrl).href;
  const listeners = new Map(); // function -> how often it wants to know, in ms
  let latest = { farms: [], error: "" };
  let timer = 0;
  let looking = false;

  async function request(path, body) {
    const init = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    const response = await ServerConnection.makeRequest(base + path, init, settings);
    if (response.status === 404) throw new Error("Jupyter's server has no task farms: run `ipytaskfarm jupyter enable` in its environment, and start it again.");
    const answer = await response.json().catch(() => ({}));
    if (answer.error || !response.ok) throw new Error((answer.error && answer.error.text) || answer.message || `Jupyter's server answers ${response.status}`);
    return answer;
  }

  async function look() {
    const found = await request("overview");
    latest = { ...found, error: "" };
    return latest;
  }

  async function turn() {
    clearTimeout(timer);
    if (looking || !listeners.size) return;
    looking = true;
    if (!document.hidden) {
      try { await look(); }
      catch (error) { latest = { farms: [], error: error.message }; }
      for (const heard of listeners.keys()) heard(latest);
    }
    looking = false;
    clearTimeout(timer);
    if (listeners.size) timer = setTimeout(turn, Math.min(...listeners.values()));
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });

  return {
    base,
    look,
    refresh: turn,
    // Tell a listener the numbers now and then; every: how often, in ms.
    follow(heard, every) { listeners.set(heard, every); heard(latest); turn(); },
    unfollow(heard) { listeners.delete(heard); },
    start: (farm, engines) => request("start", { farm, engines }).then((answer) => answer.value.text),
    stop: (farm) => request("stop", { farm }).then((answer) => answer.value.text),
    act: (farm, what, args) => request("act", { farm, what, arguments: args }).then((answer) => answer.value),
    pageUrl: (farm) => `${base}?farm=${encodeURIComponent(farm)}`,
    socketUrl: (farm) => {
      const url = new URL("socket", base.replace(/^http/, "ws"));
      url.searchParams.set("farm", farm);
      return url.href;
    },
    // The farm and the job of a link to a page of this server; null: it leads elsewhere.
    pageOf(href) {
      if (!href.startsWith(`${base}?`)) return null;
      const asked = new URL(href).searchParams;
      return asked.get("farm") ? { farm: asked.get("farm"), job: asked.get("job") } : null;
    },
  };
}

export { PANEL_MS, STATUS_MS };
