// Asks the server what the page shows first, while the browser still loads the page's other script.  A script of its own,
// because the content policy allows none in the document.

(() => {
  const base = new URL(".", document.currentScript.src);
  const asked = new URLSearchParams(location.search);
  // The key stands behind the # of the URL.  It is taken out of the address, and becomes a cookie.
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) history.replaceState(null, "", location.pathname + location.search);
  const headers = { "Content-Type": "application/json" };
  const loggedIn = token ? fetch(new URL("login", base), { method: "POST", body: JSON.stringify({ token }), headers }) : Promise.resolve();
  const url = new URL("farms", base);
  url.searchParams.set("first", asked.get("farm") || "");
  const farms = fetch(url, token ? { headers: { Authorization: `Bearer ${token}` } } : {});
  for (const each of [loggedIn, farms]) each.catch(() => {}); // main.js waits for them, and says what was wrong
  window.taskfarmStart = { loggedIn, farms };
})();
