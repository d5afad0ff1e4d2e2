// Keeps a page current and asks before it does anything to an executor. Without it pages are whole, and still.
"use strict";
(() => {
  const root = document.documentElement;
  const one = (selector, within = document) => within.querySelector(selector);

  // Colours: the system's, unless one was chosen in this browser.
  const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };
  const chosen = () => {
    try { return localStorage.getItem("ah-theme") || "auto"; } catch { return "auto"; }
  };
  const paint = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
  };
  paint(chosen());

  const pageToken = () => one("meta[name=x-ah-page-token]")?.content;

  // The page is asked for anew and what differs is put in its place; one request at a time.
  let busy = false;
  let again = false;
  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      do {
        again = false;
        const address = location.href;
        const response = await fetch(address, { headers: { accept: "text/html" }, cache: "no-store" });
        if (response.status === 401 || response.status === 403) { location.reload(); return; }
        const text = await response.text();
        if (address !== location.href) again = true;
        else swap(new DOMParser().parseFromString(text, "text/html"));
      } while (again);
    } catch {
      show("lost");
    } finally {
      busy = false;
    }
  }

  function swap(fresh) {
    const marked = getSelection();
    for (const region of document.querySelectorAll("[data-live]")) {
      const wanted = fresh.getElementById(region.id);
      if (!wanted || wanted.innerHTML === region.innerHTML) continue;
      // Whoever is marking text to copy keeps it.
      if (marked && !marked.isCollapsed && region.contains(marked.anchorNode)) continue;
      const focused = region.contains(document.activeElement) ? document.activeElement : null;
      const scrolled = Array.from(region.querySelectorAll(".scroll"), (box) => box.scrollLeft);
      region.replaceChildren(...Array.from(wanted.childNodes, (node) => document.importNode(node, true)));
      region.querySelectorAll(".scroll").forEach((box, n) => { box.scrollLeft = scrolled[n] || 0; });
      if (focused) alike(region, focused)?.focus({ preventScroll: true });
    }
    // What a session may do can have changed with it.
    const token = one("meta[name=x-ah-page-token]", fresh)?.content;
    const meta = one("meta[name=x-ah-page-token]");
    if (meta && token) meta.content = token;
  }

  // The element that took the place of `old`.
  function alike(region, old) {
    const same = ["href", "data-act", "data-id", "data-span", "rel"];
    for (const other of region.querySelectorAll(old.localName)) {
      if (same.every((name) => other.getAttribute(name) === old.getAttribute(name))) return other;
    }
    return null;
  }

  // The access point says when there is something new.
  let source = null;
  function listen() {
    if (source || document.hidden) return;
    source = new EventSource("/live");
    source.onopen = () => { show("on"); refresh(); };
    source.onmessage = () => { show("on"); refresh(); };
    source.onerror = () => {
      show("lost");
      if (source?.readyState !== EventSource.CLOSED) return;
      // Refused, not lost: signed out, or the access point is another one by now.
      source = null;
      setTimeout(() => { refresh().then(listen); }, 3000);
    };
  }
  function hush() {
    source?.close();
    source = null;
  }
  function show(state) {
    const live = one("#live");
    if (!live) return;
    live.hidden = false;
    if (live.dataset.state === state) return;
    live.dataset.state = state;
    live.textContent = state === "on" ? "live" : "reconnecting…";
  }

  // Searching while typing.
  let typing;
  function search(form) {
    clearTimeout(typing);
    const pairs = Array.from(new FormData(form)).filter(([, value]) => value !== "");
    const query = new URLSearchParams(pairs).toString();
    history.replaceState(null, "", form.getAttribute("action") + (query ? "?" + query : ""));
    refresh();
  }

  // Nothing is done to an executor without a second word.
  const ACTS = {
    revoke: {
      title: "Revoke this executor?",
      text: "Its session ends at once, and every later connection is refused until it is reinstated.",
      button: "Revoke",
      done: "Revoked",
      danger: true,
    },
    reinstate: {
      title: "Reinstate this executor?",
      text: "It may enroll again, with the certificate that it has.",
      button: "Reinstate",
      done: "Reinstated",
    },
    disconnect: {
      title: "Disconnect this executor?",
      text: "Its session ends. It may come back at once.",
      button: "Disconnect",
      done: "Disconnected",
    },
  };
  let asked = null;
  function ask(button) {
    const { act, id, name } = button.dataset;
    const told = ACTS[act];
    const dialog = one("#confirm");
    if (!told || !dialog) return;
    asked = { act, id, name };
    one("#confirm-title").textContent = told.title;
    one("#confirm-who").textContent = name === id ? id : name + " · " + id;
    one("#confirm-text").textContent = told.text;
    one("#confirm-reason").hidden = act !== "revoke";
    one("#reason").value = "";
    one("#confirm-error").hidden = true;
    const go = one("#confirm-do");
    go.textContent = told.button;
    go.disabled = false;
    go.classList.toggle("danger", Boolean(told.danger));
    dialog.showModal();
    if (act === "revoke") one("#reason").focus();
  }
  async function go() {
    if (!asked) return;
    const { act, id, name } = asked;
    const error = one("#confirm-error");
    one("#confirm-do").disabled = true;
    try {
      const headers = { "content-type": "application/json", "x-ah-page-token": pageToken() || "" };
      const body = act === "revoke" ? JSON.stringify({ reason: one("#reason").value.trim() }) : undefined;
      const response = await fetch(`/api/v1/executors/${encodeURIComponent(id)}/${act}`, { method: "POST", headers, body });
      if (response.ok) {
        one("#confirm").close();
        toast(`${ACTS[act].done}: ${name}`);
      } else {
        const why = await response.json().catch(() => ({ text: `the access point answered ${response.status}` }));
        error.textContent = [why.text, ...(why.causes || []), why.hint].filter(Boolean).join(". ");
        error.hidden = false;
        one("#confirm-do").disabled = false;
      }
    } catch {
      error.textContent = "The access point does not answer.";
      error.hidden = false;
      one("#confirm-do").disabled = false;
    }
    refresh();
  }
  let fading;
  function toast(text) {
    const box = one("#toast");
    box.textContent = text;
    box.hidden = false;
    clearTimeout(fading);
    fading = setTimeout(() => { box.hidden = true; }, 5000);
  }

  document.addEventListener("DOMContentLoaded", () => {
    const theme = one("#theme");
    if (theme) {
      theme.hidden = false;
      theme.textContent = THEMES[chosen()] || THEMES.auto;
      theme.addEventListener("click", () => {
        const names = Object.keys(THEMES);
        const next = names[(names.indexOf(chosen()) + 1) % names.length];
        try { localStorage.setItem("ah-theme", next); } catch { /* for this page alone, then */ }
        paint(next);
        theme.textContent = THEMES[next];
      });
    }
    if (!one("[data-live]")) return;
    if (pageToken()) root.dataset.may = "act";
    document.addEventListener("click", (event) => {
      const button = event.target.closest?.("[data-act]");
      if (button) ask(button);
    });
    one("#confirm-do").addEventListener("click", go);
    one("#reason").addEventListener("keydown", (event) => {
      if (event.key === "Enter") { event.preventDefault(); go(); }
    });
    const form = one("#search");
    if (form) {
      form.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => search(form), 200); });
      form.addEventListener("submit", (event) => { event.preventDefault(); search(form); });
    }
    document.addEventListener("keydown", (event) => {
      const inField = /^(input|select|textarea)$/.test(event.target.localName);
      if (event.key !== "/" || inField || event.ctrlKey || event.metaKey || event.altKey) return;
      const field = one("#q");
      if (field) { event.preventDefault(); field.focus(); field.select(); }
    });
    // A page that nobody sees asks for nothing.
    document.addEventListener("visibilitychange", () => (document.hidden ? hush() : listen()));
    addEventListener("pagehide", hush);
    addEventListener("pageshow", listen);
    listen();
  });
})();
