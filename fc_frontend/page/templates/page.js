"use strict";
// Shows every few seconds what the same page says now; without this script it reloads as a whole.
(() => {
  const EVERY = 5000;
  const age = document.getElementById("age");
  const parse = (text) => new DOMParser().parseFromString(text, "text/html");
  const place = (element) => element.id || element.getAttribute("href") || "";

  function show(fresh) {
    const focused = document.activeElement;
    const inside = focused && focused.closest("[data-live]");
    const at = inside && place(focused);
    for (const old of document.querySelectorAll("[data-live]")) {
      const now = fresh.getElementById(old.id);
      if (now && now.innerHTML !== old.innerHTML) old.replaceChildren(...now.childNodes);
      if (now) old.hidden = now.hidden;
    }
    document.title = fresh.title;
    const icons = [document, fresh].map((page) => page.querySelector("link[rel=icon]"));
    if (icons[0] && icons[1]) icons[0].href = icons[1].href;
    age.replaceChildren(...fresh.getElementById("age").childNodes);
    age.className = "quiet";
    if (at && !document.contains(focused)) {
      const again = [...document.querySelectorAll("a, pre")].find((one) => place(one) === at);
      if (again) again.focus({ preventScroll: true });
    }
  }

  async function refresh() {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(EVERY * 2) });
      const fresh = parse(await answer.text());
      const ids = (page) => [...page.querySelectorAll("[data-live]")].map((one) => one.id).join();
      if (ids(fresh) !== ids(document)) location.reload();
      else show(fresh);
    } catch (error) {
      if (age.className === "old") return;
      age.className = "old";
      age.append(": fc-frontend does not answer, this is old");
    }
  }

  const selected = () => String(getSelection()) !== "";
  const loop = async () => {
    if (!selected()) await refresh();
    setTimeout(loop, EVERY);
  };
  setTimeout(loop, EVERY);
})();
