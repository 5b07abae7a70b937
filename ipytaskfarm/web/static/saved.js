// The transport of a saved page: everything that it can ask stands in the file.

export function savedTransport(data) {
  const { picture, tasks, details, stretches, first_s, profile } = data;

  function page({ state, text, job, cause, engine_id, before, count = 50, oldest_first }) {
    const words = (text || "").toLowerCase();
    const group = cause ? picture.causes[cause] : null;
    const rows = tasks.filter((row) =>
      (!state || row.state === state) && (!job || row.job === job) && (engine_id === null || engine_id === undefined || row.engine_id === engine_id)
      && (!group || (row.reason === group.reason && row.etype === group.etype && row.place === group.place))
      && (!words || [row.name, row.etype, row.text, row.place].some((each) => each.toLowerCase().includes(words)))
      && (before === null || before === undefined || (oldest_first ? row.id > before : row.id < before)));
    rows.sort((a, b) => (oldest_first ? a.id - b.id : b.id - a.id));
    const shown = rows.slice(0, count);
    return { rows: shown, next: rows.length > count ? shown[shown.length - 1].id : null, full: true };
  }

  function detail(id) {
    if (details[id]) return details[id];
    const row = tasks.find((each) => each.id === id);
    if (!row) throw new Error(`task ${id} is not in this file: it has ${tasks.length} tasks`);
    const { state, reason, etype, text, place } = row;
    const why = [`task ${id} ${state === "scheduled" || state === "running" ? "is " : ""}${state}${reason ? `: ${reason}` : ""}`].concat(etype ? [`${etype}${text ? `: ${text}` : ""}${place ? ` (${place})` : ""}`] : []);
    return { id, why, history: [], input: null, end: row.completed_s ? { ...row, node: "", traceback: "", stdout: "", stderr: "", value_bytes: null, displays: 0 } : null };
  }

  const answers = {
    tasks: page,
    task: ({ id }) => detail(id),
    stretches: ({ since_s, until_s }) => ({ rows: stretches.filter((row) => row[4] >= since_s && row[3] <= until_s), next: null, first_s }),
    profile: () => profile,
    engines: () => ({ rows: picture.engines, total: Object.keys(picture.engines).length }),
  };
  return {
    control: false,
    live: false,
    profiled: Boolean(profile),
    follow(listener) {
      listener({ type: "line", state: "open", text: "" });
      listener({ type: "picture", picture });
    },
    async ask(what, args) { return answers[what](args); },
    async act() { throw new Error("a saved page changes nothing"); },
  };
}
