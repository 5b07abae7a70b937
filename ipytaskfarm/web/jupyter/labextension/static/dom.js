// Elements made in one call.

export function make(kind, given = {}, ...children) {
  const { on = {}, ...attributes } = given;
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(name, value);
  for (const [name, then] of Object.entries(on)) made.addEventListener(name, then);
  made.append(...children);
  return made;
}

export const COUNT = new Intl.NumberFormat("en-US");

// What a farm does, in words: "4 engines · 3 running, 12 scheduled, 2 failed".
export function numbers(farm) {
  const { counts = {}, engines, wanted } = farm;
  const tasks = ["running", "scheduled", "failed"].filter((state) => counts[state]).map((state) => `${COUNT.format(counts[state])} ${state}`);
  const ready = engines === wanted ? COUNT.format(engines) : `${COUNT.format(engines)} of ${COUNT.format(wanted)}`;
  return { engines: `${ready} engine${wanted === 1 ? "" : "s"}`, tasks: tasks.join(", ") || "nothing to do" };
}
