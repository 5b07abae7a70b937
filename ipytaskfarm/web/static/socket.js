// The transport of a page that a server serves: one WebSocket, which closes while nobody looks, and comes back.
//
// A transport has: control (signal-free boolean, set before the first picture), follow(listener), ask(what, arguments),
// act(what, arguments).  Listeners get {type: "picture", picture}, {type: "delta", operations} and
// {type: "line", state: "open" | "lost" | "refused", text}, and {type: "clock", ahead}: by how many seconds the server's
// clock is ahead of this one.
//
// first: {control, picture}, what is shown until the socket brings everything.  ready: the socket waits for this promise.
// whyRefused: asked when a socket could not be opened; returns a promise of what the person has to do, "" if nothing.

const HIDDEN_MS = 60000;
const ASK_MS = 30000;
const REFUSED_MS = 5000; // a farm that is not known may be started yet

export function socketTransport({ socketUrl, act, first = null, ready = Promise.resolve(), whyRefused = async () => "" }) {
  let socket = null;
  let listener = () => {};
  let name = null;
  let number = null;
  let tries = 0;
  let timer = 0;
  let hiddenTimer = 0;
  let sleeping = false;
  let over = false;
  let refused = false;
  let asked = 0;
  let messages = 0;
  let why = ""; // the server does not let this page in
  let early = []; // messages of a page that begins, until its socket is open
  const waiting = new Map();
  const transport = { control: Boolean(first && first.control), live: true };

  const failAll = (text) => {
    for (const { reject } of waiting.values()) reject(new Error(text));
    waiting.clear();
  };

  function connect() {
    clearTimeout(timer);
    if (over || socket) return;
    socket = new WebSocket(socketUrl);
    const own = socket;
    own.onopen = () => {
      own.wasOpen = true;
      why = "";
      own.send(JSON.stringify({ type: "hello", picture: name, number }));
      for (const text of early || []) own.send(text);
      early = null;
    };
    own.onmessage = (event) => socket === own && hear(JSON.parse(event.data));
    own.onclose = () => drop(own);
  }

  // Without a network a browser may take minutes to close a socket, or never notice that it is dead.  So a socket is given
  // up at once when it is found closing, and when nothing at all came through it while a question waited for its answer.
  function drop(own) {
    if (socket !== own) return;
    socket = null;
    early = null;
    own.close();
    failAll("the connection was lost");
    if (sleeping || over) return;
    if (refused) { timer = setTimeout(connect, REFUSED_MS); return; }
    const lost = () => listener({ type: "line", state: "lost", text: why || "No connection to the server. Trying again." });
    lost();
    if (!own.wasOpen) whyRefused().then((text) => { why = text; if (tries) lost(); }, () => {});
    timer = setTimeout(connect, Math.min(10000, 300 * 2 ** tries++));
  }

  function hear(said) {
    messages++;
    if (said.type === "answer") {
      const { resolve, reject } = waiting.get(said.n) || {};
      waiting.delete(said.n);
      if (resolve) said.error ? reject(Object.assign(new Error(said.error.text), { kind: said.error.type })) : resolve(said.value);
      return;
    }
    if (said.type === "refused") {
      refused = true;
      listener({ type: "line", state: "refused", text: said.error.text });
      return;
    }
    if (said.type === "picture") {
      ({ name, number } = said);
      transport.control = said.control;
    } else if (said.type === "resumed") transport.control = said.control;
    else if (said.type === "delta") {
      if (said.number !== number + 1) {
        if (said.number > number) { name = null; socket.close(); }
        return;
      }
      number = said.number;
    }
    refused = false;
    if (tries || said.type !== "delta") listener({ type: "line", state: "open", text: "" });
    tries = 0;
    if (said.at_s) listener({ type: "clock", ahead: said.at_s - Date.now() / 1000 });
    if (said.type !== "resumed") listener(said);
  }

  function send(message) {
    if (socket && socket.readyState > WebSocket.OPEN) drop(socket);
    const text = JSON.stringify(message);
    if (early) early.push(text);
    else if (!socket || socket.readyState !== WebSocket.OPEN) throw new Error("there is no connection");
    else socket.send(text);
  }

  transport.ask = (what, args) =>
    new Promise((resolve, reject) => {
      const n = ++asked;
      const [asking, before] = [socket, messages];
      const giveUp = setTimeout(() => {
        waiting.delete(n);
        reject(new Error("the server does not answer"));
        if (asking && messages === before) drop(asking);
      }, ASK_MS);
      const over = (then) => (value) => { clearTimeout(giveUp); then(value); };
      waiting.set(n, { resolve: over(resolve), reject: over(reject) });
      try { send({ type: "ask", n, what, arguments: args }); }
      catch (error) { waiting.delete(n); clearTimeout(giveUp); reject(error); }
    });
  transport.act = act;
  transport.follow = (heard) => {
    listener = heard;
    if (first) listener({ type: "picture", picture: first.picture });
    ready.then(connect);
  };
  transport.stop = () => {
    over = true;
    clearTimeout(timer);
    clearTimeout(hiddenTimer);
    document.removeEventListener("visibilitychange", looked);
    if (socket) socket.close();
  };

  const looked = () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) hiddenTimer = setTimeout(() => { sleeping = true; if (socket) socket.close(); }, HIDDEN_MS);
    else if (sleeping || !socket) { sleeping = false; tries = 0; connect(); }
  };
  document.addEventListener("visibilitychange", looked);
  return transport;
}
