"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  dark.addEventListener("change", nameTheme);
  nameTheme();

  // Paper cannot be unfolded.
  const folded = [...document.querySelectorAll("details[data-print]:not([open])")];
  addEventListener("beforeprint", () => folded.forEach((part) => { part.open = true; }));
  addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));

  // A flagged picture has no source before its reader asks for it.
  const flagged = [...document.querySelectorAll("button.flagged")];
  const all = document.getElementById("show-all");
  const sure = document.getElementById("show-sure");
  const none = document.getElementById("hide-all");
  const shown = (button) => button.getAttribute("aria-pressed") === "true";
  const ask = (asking) => {
    sure.hidden = !asking;
    all.hidden = asking;
    none.hidden = !asking && !flagged.some(shown);
    none.textContent = asking ? "No" : "Blur them again";
  };
  const show = (button, visible) => {
    const real = button.querySelector(".real");
    if (visible) real.src = real.dataset.src;
    else real.removeAttribute("src");
    real.hidden = !visible;
    button.querySelector(".say").hidden = visible;
    button.setAttribute("aria-pressed", String(visible));
  };
  for (const button of flagged) {
    button.disabled = false;
    button.addEventListener("click", () => {
      show(button, !shown(button));
      ask(false);
    });
  }

  if (!flagged.length) return;
  ask(false);
  all.addEventListener("click", () => { ask(true); sure.focus(); });
  sure.addEventListener("click", () => {
    flagged.forEach((button) => show(button, true));
    ask(false);
    none.focus();
  });
  none.addEventListener("click", () => {
    if (sure.hidden) flagged.forEach((button) => show(button, false));
    ask(false);
    all.focus();
  });
})();
