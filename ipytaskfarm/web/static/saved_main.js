// Starts a saved page.

import { mount } from "./page.js";
import { savedTransport } from "./saved.js";

mount(document.getElementById("page"), savedTransport(JSON.parse(document.getElementById("data").textContent)));
