"use strict";
// Shows every few seconds what the same page says now; without this script it reloads as a whole.
(() => {
  const EVERY = 5000;
  const [age, told, pause] = ["age", "told", "pause"].map((id) => document.getElementById(id));
  const place = (element) => element.id || element.getAttribute("href") || "";
  const ids = (page) => [...page.querySelectorAll("[data-live]")].map((one) => one.id).join();
  let isPaused = false;

  function say(words, isOld) {
    if (told.textContent !== words) told.textContent = words;
    told.className = isOld ? "old" : "";
  }

  // Whoever selects text wants to keep what is there.
  function isBusy() {
    const selection = getSelection();
    return selection !== null && !selection.isCollapsed;
  }

  function show(fresh) {
    const focused = document.activeElement;
    const at = focused && focused.closest("[data-live]") && place(focused);
    for (const old of document.querySelectorAll("[data-live]")) {
      const now = fresh.getElementById(old.id);
      if (now.innerHTML !== old.innerHTML) old.replaceChildren(...now.childNodes);
      old.hidden = now.hidden;
    }
    document.title = fresh.title;
    document.querySelector("link[rel=icon]").href = fresh.querySelector("link[rel=icon]").href;
    age.replaceChildren(...fresh.getElementById("age").childNodes);
    if (!at || document.contains(focused)) return;
    const again = [...document.querySelectorAll("a, pre")].find((one) => place(one) === at);
    if (again) again.focus({ preventScroll: true });
  }

  async function refresh() {
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(EVERY * 4) });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (isPaused || isBusy()) return;
      if (ids(fresh) !== ids(document)) location.reload();
      else show(fresh);
      say("", false);
    } catch (error) {
      say("fc-frontend does not answer: this page is out of date", true);
    }
  }

  async function loop() {
    if (!isPaused && !isBusy() && !document.hidden) await refresh();
    setTimeout(loop, EVERY);
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    pause.textContent = isPaused ? "Resume" : "Pause";
    say(isPaused ? "paused" : "", false);
    if (!isPaused) refresh();
  });
  setTimeout(loop, EVERY);
})();
