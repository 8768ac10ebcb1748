"use strict";
// Fetches the page again and puts in what differs. Leaves alone what the reader is doing: selected text, opened parts, focus.
(() => {
  const EVERY_MS = 2000;
  const PATIENCE_MS = 8000;
  const lost = document.getElementById("lost");
  const announcement = document.getElementById("announcement");
  const opened = new Map();
  let answeredAt = new Date();

  const headline = () => document.getElementById("headline").textContent;

  const selecting = () => {
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed;
  };

  const replace = (there, fresh) => {
    for (const part of fresh.querySelectorAll("details")) {
      if (opened.has(part.id)) part.open = opened.get(part.id);
    }
    const focused = there.contains(document.activeElement) ? document.activeElement.closest("[id]") : null;
    there.replaceWith(fresh);
    if (focused !== null) {
      const again = document.getElementById(focused.id);
      (again?.querySelector("summary") ?? again)?.focus({ preventScroll: true });
    }
  };

  const show = (fresh) => {
    const before = headline();
    const main = document.querySelector("main");
    const parts = [...fresh.querySelector("main").children];
    const same = parts.map((part) => part.id).join() === [...main.children].map((part) => part.id).join();
    if (!same) {
      replace(main, document.importNode(fresh.querySelector("main"), true));
    } else {
      [...main.children].forEach((there, index) => {
        if (!there.isEqualNode(parts[index])) replace(there, document.importNode(parts[index], true));
      });
    }
    for (const id of ["where", "versions", "icon"]) {
      document.getElementById(id).replaceWith(document.importNode(fresh.getElementById(id), true));
    }
    document.title = fresh.title;
    if (headline() !== before) announcement.textContent = headline();
  };

  const refresh = async () => {
    if (document.hidden || selecting()) return;
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (fresh.getElementById("headline") === null) throw new Error(`${answer.status}`);
      answeredAt = new Date();
      lost.hidden = true;
      show(fresh);
    } catch {
      // Whatever it was, the reader must know that what is shown gets old.
      const since = answeredAt.toISOString().slice(11, 19);
      lost.textContent = `This worker has not answered since ${since} UTC. What is below is as it was then.`;
      lost.hidden = false;
    }
  };

  // What the reader opens or closes stays so. The event also comes for parts that are new; those say nothing new.
  document.addEventListener("toggle", (event) => opened.set(event.target.id, event.target.open), true);
  document.addEventListener("visibilitychange", refresh);
  const again = async () => {
    await refresh();
    setTimeout(again, EVERY_MS);
  };
  setTimeout(again, EVERY_MS);
})();
