// A page within another document, JupyterLab's or a notebook's: in a shadow tree, so that neither one's styles and ids
// reach the other.

import { mount } from "./page.js";

// JupyterLab says on its body which theme it has; elsewhere the system's preference counts.
const labTheme = () => ({ true: "light", false: "dark" })[document.body.dataset.jpThemeLight] || "";

// Shows a farm in an element, in JupyterLab's theme; returns a function that takes it away again.
// styles: elements that style the page, <link> or <style>.  makeTransport: returns a new transport.  wanted: as of mount.
export function mountInside(host, styles, makeTransport, wanted = {}) {
  const tree = host.shadowRoot || host.attachShadow({ mode: "open" });
  const root = document.createElement("div");
  tree.replaceChildren(...styles, root);
  const loaded = styles.filter((style) => style.localName === "link").map((link) => new Promise((done) => { link.onload = link.onerror = done; }));
  let unmount = null;
  let theme = null;
  let over = false;

  function show() {
    const now = labTheme();
    if (over || now === theme) return;
    theme = now;
    if (unmount) unmount(); // charts read their colours once
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    unmount = mount(root, makeTransport(), wanted);
  }

  const themes = new MutationObserver(show);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  Promise.all(loaded).then(show);
  return () => {
    over = true;
    themes.disconnect();
    if (unmount) unmount();
    tree.replaceChildren();
  };
}
