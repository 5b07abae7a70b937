// Starts the page that `ipytaskfarm web` or Jupyter's server serves, with what start.js has asked meanwhile.

import { mount } from "./page.js";
import { socketTransport } from "./socket.js";

const base = new URL(".", import.meta.url);
let shownFarm = "";
const asked = new URLSearchParams(location.search);
const farm = asked.get("farm") || "";

const cookie = (name) => (document.cookie.match(new RegExp(`(?:^|; )${name}=([^;]*)`)) || [])[1] || "";


// Several farms, or none: a list to choose from.
function choose(farms) {
  const element = document.getElementById("page");
  element.classList.add("tf-root");
  const make = (kind, name, ...children) => {
    const made = document.createElement(kind);
    made.className = name;
    made.append(...children);
    return made;
  };
  const links = farms.map((name) => {
    const link = make("a", "tf-choice-link", name);
    link.href = `?farm=${encodeURIComponent(name)}`;
    return make("li", "", link);
  });
  const body = links.length ? make("ul", "tf-list", ...links) : make("p", "tf-empty", "No farm runs here. `ipytaskfarm start` starts one.");
  element.replaceChildren(make("main", "tf-page tf-choose", make("h1", "", "Task farms"), body));
}

const REFUSED = {
  401: "The server does not know this page: it was started again, and has printed another URL. Open that one.",
  403: "The server does not let this page in any more: reload it, and log in again.",
};

async function act(what, args) {
  const sent = fetch(new URL("act", base), {
    method: "POST", body: JSON.stringify({ farm: farm || shownFarm, what, arguments: args }),
    headers: { "Content-Type": "application/json", "X-XSRFToken": decodeURIComponent(cookie("_xsrf")) },
  });
  const response = await sent.catch(() => { throw new Error("there is no connection to the server"); });
  const answer = await response.json().catch(() => ({ error: { text: REFUSED[response.status] || `the server answers ${response.status}` } }));
  if (answer.error || !response.ok) throw new Error((answer.error && answer.error.text) || answer.message || `the server answers ${response.status}`);
  return answer.value;
}

function say(text) {
  const element = document.getElementById("page");
  element.classList.add("tf-root");
  element.replaceChildren(Object.assign(document.createElement("p"), { className: "tf-trouble", textContent: text }));
}

// A server that was started again does not know the pages of the one before.  A browser does not tell a page why its
// socket was refused.
async function whyRefused() {
  const { status } = await fetch(new URL("farms", base));
  return REFUSED[status] || "";
}

// The list is as old as the page, which somebody leaves to start a farm, and comes back to.
function lookAgain(shown) {
  const look = async () => {
    if (document.hidden) return;
    const response = await fetch(new URL("farms", base)).catch(() => null);
    const { farms } = response && response.ok ? await response.json() : { farms: shown };
    if (farms.join() !== shown.join()) choose(farms);
    shown = farms;
  };
  window.addEventListener("focus", look);
  document.addEventListener("visibilitychange", look);
}

async function start() {
  const response = await window.taskfarmStart.farms;
  if (response.status === 401 || response.status === 403) {
    say("This page needs its key: open the whole URL that `ipytaskfarm web` has printed, with what stands behind the #.");
    return;
  }
  const { farms, first } = await response.json();
  const shown = farm || (farms.length === 1 ? farms[0] : "");
  shownFarm = shown;
  if (!shown) {
    choose(farms);
    lookAgain(farms);
    return;
  }
  const socket = new URL("socket", base);
  socket.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  socket.searchParams.set("farm", shown);
  document.title = `${shown} – task farm`;
  document.getElementById("page").replaceChildren();
  mount(document.getElementById("page"), socketTransport({ socketUrl: socket.href, act, first, whyRefused, ready: window.taskfarmStart.loggedIn }), { job: asked.get("job") });
}

// A URL with another key that is pasted into this tab loads nothing anew: only what is behind the # has changed.
window.addEventListener("hashchange", () => {
  if (new URLSearchParams(location.hash.slice(1)).has("token")) location.reload();
});

start().catch((error) => say(`The server does not answer: ${error.message}`));
