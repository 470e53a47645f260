// Keeps the page up to date: texts every few seconds, and its parts when there is more to show.
(() => {
  "use strict";
  const EVERY_MS = 5000, STALE_MS = 30000, PATIENCE_MS = 8000;
  const body = document.body;
  const title = document.title;
  const lost = document.getElementById("lost");
  let heard = Date.now(), shownTitle = title, isLost = false, asking = false;

  const get = (address) => fetch(address, {
    cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(PATIENCE_MS),
  });

  // What is old says nothing about now: never leave "safe" on the screen.
  const judge = () => {
    const now = Date.now() - heard > STALE_MS;
    if (now === isLost) return;
    isLost = now;
    lost.hidden = !isLost;
    document.getElementById("verdict").hidden = isLost;
    body.classList.toggle("lost", isLost);
    document.title = isLost ? "? Unknown · cln-backup" : shownTitle;
  };

  const setTexts = (nodes) => {
    const shown = new Map(nodes.map((node) => [node.name, node.shown]));
    for (const part of document.querySelectorAll("[data-node]")) {
      const texts = shown.get(part.dataset.node) || {};
      for (const place of part.querySelectorAll("[data-fact]")) {
        const text = texts[place.dataset.fact];
        if (text !== undefined && place.textContent !== text) place.textContent = text;
      }
    }
  };

  const renew = async () => {
    const answer = await get(location.href);
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (fresh.body.dataset.build !== body.dataset.build) return location.reload();
    const parts = [...document.querySelectorAll("[data-part]")];
    const others = [...fresh.querySelectorAll("[data-part]")];
    if (parts.map((part) => part.id).join() !== others.map((part) => part.id).join()) {
      return location.reload();
    }
    parts.forEach((part, place) => {
      const other = others[place];
      if (part.innerHTML === other.innerHTML && part.className === other.className) return;
      const focused = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
      part.className = other.className;
      part.replaceChildren(...other.childNodes);
      if (focused) part.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    });
    for (const kind of ["good", "warning", "bad", "unknown"]) {
      body.classList.toggle(kind, fresh.body.classList.contains(kind));
    }
    body.dataset.revision = fresh.body.dataset.revision;
    shownTitle = fresh.title;
    if (!isLost) document.title = shownTitle;
    document.getElementById("made").replaceWith(fresh.getElementById("made"));
    document.querySelector("link[rel=icon]").href = fresh.querySelector("link[rel=icon]").getAttribute("href");
  };

  const ask = async () => {
    if (asking) return;
    asking = true;
    try {
      const answer = await get(body.dataset.json);
      if (answer.ok) {
        const state = await answer.json();
        if (state.revision !== body.dataset.revision) await renew();
        setTexts(state.nodes);
        heard = Date.now();
      }
    } catch { /* Not reached: `judge` says so when it lasts. */ }
    asking = false;
    judge();
  };

  setInterval(ask, EVERY_MS);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { ask(); setTimeout(judge, 500); } });
  addEventListener("pageshow", (event) => { if (event.persisted) { judge(); ask(); } });

  const read = (event) => {
    const chart = event.target.closest?.(".chart");
    for (const other of document.querySelectorAll(".chart[data-read]")) if (other !== chart) leave(other);
    const axes = chart?.querySelector(".axes");
    if (!axes || !event.target.closest(".axes")) return chart && leave(chart);
    const points = JSON.parse(chart.dataset.points), box = axes.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * 1000;
    const nearest = points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
    const reading = chart.querySelector(".reading span"), cursor = axes.querySelector(".cursor");
    chart.dataset.read ||= reading.textContent;
    reading.textContent = nearest[1];
    cursor.setAttribute("x1", `${nearest[0] / 10}%`);
    cursor.setAttribute("x2", `${nearest[0] / 10}%`);
    cursor.setAttribute("visibility", "visible");
  };
  const leave = (chart) => {
    if (chart.dataset.read === undefined) return;
    chart.querySelector(".reading span").textContent = chart.dataset.read;
    chart.querySelector(".cursor").setAttribute("visibility", "hidden");
    delete chart.dataset.read;
  };
  document.addEventListener("pointermove", read);
  document.addEventListener("pointerdown", read);
})();
