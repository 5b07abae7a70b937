// The transport of a page in a notebook's cell: a widget of the kernel.  The kernel tells what happens also while a
// cell runs; a question waits for the end of the cell, unless Jupyter gives widgets a thread of their own (a subshell).

import { apply } from "./picture.js";

const ASK_MS = 30000;
const BUSY = "The kernel is busy, and does not answer: interrupt its cell, or wait for its end.";

// What all views of one widget share: the picture, and who listens to it.
export function commFarm(model) {
  const listeners = new Set();
  const waiting = new Map();
  let picture = model.get("picture");
  let [name, number] = model.get("stamp");
  let asked = 0;
  const own = Math.random().toString(36).slice(2);

  const whole = () => {
    const [of, at] = model.get("stamp");
    if (of === name && at < number) return; // deltas have come since it was sent
    picture = model.get("picture");
    [name, number] = [of, at];
    for (const hear of listeners) hear({ type: "picture", picture: structuredClone(picture) });
  };
  const heard = (said) => {
    if (said.type === "delta" && said.number === number + 1) {
      number = said.number;
      apply(picture, said.operations);
      for (const hear of listeners) hear({ type: "clock", ahead: said.at_s - Date.now() / 1000 });
      for (const hear of listeners) hear({ type: "delta", operations: said.operations });
    } else if (said.type === "answer" && said.page === own) {
      const { resolve, reject } = waiting.get(said.n) || {};
      waiting.delete(said.n);
      if (resolve) said.error ? reject(Object.assign(new Error(said.error.text), { kind: said.error.type })) : resolve(said.value);
    }
  };
  const lost = () => { for (const hear of listeners) hear({ type: "line", state: "lost", text: "The kernel is gone." }); };
  model.on("change:stamp", whole);
  model.on("msg:custom", heard);
  model.on("comm:close", lost);

  const send = (type) => (what, args) => new Promise((resolve, reject) => {
    const n = ++asked;
    const giveUp = setTimeout(() => { waiting.delete(n); reject(new Error(BUSY)); }, ASK_MS);
    const over = (then) => (value) => { clearTimeout(giveUp); then(value); };
    waiting.set(n, { resolve: over(resolve), reject: over(reject) });
    model.send({ type, page: own, n, what, arguments: args });
  });

  // Each view applies deltas to a picture of its own.
  function transport() {
    let hear = () => {};
    return {
      control: model.get("control"),
      live: true,
      follow(listener) {
        hear = listener;
        listeners.add(hear);
        hear({ type: "line", state: "open", text: "" });
        hear({ type: "picture", picture: structuredClone(picture) });
      },
      ask: send("ask"),
      act: send("act"),
      stop() { listeners.delete(hear); },
    };
  }
  return {
    transport,
    stop() {
      model.off("change:stamp", whole);
      model.off("msg:custom", heard);
      model.off("comm:close", lost);
    },
  };
}
