// The transport of a page in a notebook's cell: a widget of the kernel.  The kernel tells what happens also while a
// cell runs; a question waits for the end of the cell, unless Jupyter gives widgets a thread of their own (a subshell).

import { apply } from "./picture.js";

const ASK_MS = 30000;
const GONE = "The kernel is gone.";
const BUSY = "The kernel is busy, and does not answer: interrupt its cell, or wait for its end.";

// What all views of one widget share: the picture, and who listens to it.
export function commFarm(model) {
  const listeners = new Set();
  const waiting = new Map();
  let picture = model.get("picture");
  let [name, number] = model.get("stamp");
  let asked = 0;
  const own = Math.random().toString(36).slice(2);

  let alive = true;
  const say = (state, text) => { for (const hear of listeners) hear({ type: "line", state, text }); };
  const lost = () => { if (alive) { alive = false; say("lost", GONE); } };
  const back = () => { if (!alive) { alive = true; say("open", ""); } };
  // A kernel that is ended, or started again, says no good-bye: then nothing can be sent.
  const post = (message) => {
    try { model.send(message); }
    catch (error) { lost(); throw new Error(GONE); }
  };
  const probe = () => setTimeout(() => { try { post({ type: "probe", page: own }); } catch (error) { /* it was said */ } }, 500);

  const whole = () => {
    back();
    const [of, at] = model.get("stamp");
    if (of === name && at < number) return; // deltas have come since it was sent
    picture = model.get("picture");
    [name, number] = [of, at];
    for (const hear of listeners) hear({ type: "picture", picture: structuredClone(picture) });
  };
  const heard = (said) => {
    back();
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
  model.on("change:stamp", whole);
  model.on("msg:custom", heard);
  model.on("comm:close", lost);
  model.on("comm_live_update", probe);

  const send = (type) => (what, args) => new Promise((resolve, reject) => {
    const n = ++asked;
    const giveUp = setTimeout(() => { waiting.delete(n); reject(new Error(BUSY)); }, ASK_MS);
    const over = (then) => (value) => { clearTimeout(giveUp); then(value); };
    waiting.set(n, { resolve: over(resolve), reject: over(reject) });
    try { post({ type, page: own, n, what, arguments: args }); }
    catch (error) { clearTimeout(giveUp); waiting.delete(n); reject(error); }
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
        hear({ type: "line", state: alive ? "open" : "lost", text: alive ? "" : GONE });
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
      model.off("comm_live_update", probe);
    },
  };
}
