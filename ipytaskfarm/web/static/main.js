// Starts the page that `ipytaskfarm web` or Jupyter's server serves.  The token in the URL's fragment becomes a cookie.

import { mount } from "./page.js";
import { socketTransport } from "./socket.js";

const base = new URL(".", import.meta.url);
const farm = new URLSearchParams(location.search).get("farm") || "";

const cookie = (name) => (document.cookie.match(new RegExp(`(?:^|; )${name}=([^;]*)`)) || [])[1] || "";

async function logIn() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", location.pathname + location.search);
  await fetch(new URL("login", base), { method: "POST", body: JSON.stringify({ token }), headers: { "Content-Type": "application/json" } });
}

async function act(what, args) {
  const response = await fetch(new URL("act", base), {
    method: "POST", body: JSON.stringify({ farm, what, arguments: args }),
    headers: { "Content-Type": "application/json", "X-XSRFToken": decodeURIComponent(cookie("_xsrf")) },
  });
  const answer = await response.json().catch(() => ({ error: { text: `the server answers ${response.status}` } }));
  if (answer.error || !response.ok) throw new Error((answer.error && answer.error.text) || answer.message || `the server answers ${response.status}`);
  return answer.value;
}

function say(text) {
  const element = document.getElementById("page");
  element.classList.add("tf-root");
  element.replaceChildren(Object.assign(document.createElement("p"), { className: "tf-trouble", textContent: text }));
}

async function start() {
  await logIn();
  const response = await fetch(new URL("farms", base));
  if (response.status === 401 || response.status === 403) {
    say("This page needs its key: open the whole URL that `ipytaskfarm web` has printed, with what stands behind the #.");
    return;
  }
  const socket = new URL("socket", base);
  socket.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  if (farm) socket.searchParams.set("farm", farm);
  mount(document.getElementById("page"), socketTransport({ socketUrl: socket.href, act }));
}

start().catch((error) => say(`The server does not answer: ${error.message}`));
