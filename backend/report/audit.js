"use strict";
(() => {
  const sample = document.body.querySelector("main").dataset.sample;
  const pictures = [...document.querySelectorAll("figure.audited")];
  const labels = pictures.map(() => null);
  const WORDS = { yes: "shows it", no: "does not show it", unsure: "cannot tell" };
  const at = (id) => document.getElementById(id);
  const store = `resalign audit ${sample}`;
  let place = 0;
  let saved = true;

  // The browser's store keeps labels over a reload; some browsers have none for local files.
  try {
    const kept = JSON.parse(localStorage.getItem(store) || "[]");
    if (kept.length === labels.length) kept.forEach((label, i) => { labels[i] = label; });
  } catch { /* labels are then only in this page */ }

  const hide = (figure) => {
    const real = figure.querySelector(".real");
    real.removeAttribute("src");
    real.hidden = true;
    figure.querySelector(".veil").hidden = false;
  };
  const reveal = (figure) => {
    const real = figure.querySelector(".real");
    if (!real.hidden) { hide(figure); return; }
    real.src = real.dataset.src;
    real.hidden = false;
    figure.querySelector(".veil").hidden = true;
  };
  const show = (next) => {
    hide(pictures[place]);
    place = Math.max(0, Math.min(pictures.length - 1, next));
    pictures.forEach((figure, i) => { figure.hidden = i !== place; });
    const done = labels.filter(Boolean).length;
    at("count").textContent = `Picture ${place + 1} of ${pictures.length}; ${done} labelled`;
    at("given").textContent = labels[place] ? `Your answer: ${WORDS[labels[place]]}` : "No answer yet";
    for (const word of Object.keys(WORDS)) {
      at(word).setAttribute("aria-pressed", String(labels[place] === word));
    }
    at("done").hidden = done < pictures.length;
    at("save").disabled = done === 0;
  };
  const label = (word) => {
    // A picture that nobody looked at gets no answer.
    if (pictures[place].querySelector(".real").hidden) {
      at("given").textContent = "Look first: press the space bar";
      return;
    }
    labels[place] = word;
    saved = false;
    try { localStorage.setItem(store, JSON.stringify(labels)); } catch { /* as above */ }
    show(place + 1);
  };
  const save = () => {
    const record = { schema: 1, kind: "resalign audit labels", sample, labels };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(record, null, 1) + "\n"], { type: "application/json" }));
    link.download = "audit-labels.json";
    link.click();
    URL.revokeObjectURL(link.href);
    saved = true;
  };

  const keys = {
    y: () => label("yes"), n: () => label("no"), u: () => label("unsure"),
    " ": () => reveal(pictures[place]), s: () => { if (!at("save").disabled) save(); },
    arrowleft: () => show(place - 1), arrowright: () => show(place + 1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = keys[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
  for (const word of Object.keys(WORDS)) at(word).addEventListener("click", () => label(word));
  at("reveal").addEventListener("click", () => reveal(pictures[place]));
  at("back").addEventListener("click", () => show(place - 1));
  at("next").addEventListener("click", () => show(place + 1));
  at("save").addEventListener("click", save);
  addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
  at("sheet").hidden = false;
  show(labels.findIndex((word) => !word) < 0 ? 0 : labels.findIndex((word) => !word));
})();
