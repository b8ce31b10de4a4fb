// Light or dark, before anything is painted: the choice kept here, else the system's. What is chosen
// stands in `data-theme`, what it comes to in `data-colours`; a "theme" event says that it changes.
"use strict";

(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("flashmoe.theme");
  } catch {
    // Without storage the system decides.
  }
  root.dataset.theme = chosen === "light" || chosen === "dark" ? chosen : "system";

  function colour() {
    const { theme } = root.dataset;
    const system = dark.matches ? "dark" : "light";
    root.dataset.colours = theme === "system" ? system : theme;
  }

  colour();
  document.addEventListener("theme", colour); // the first to hear it: others look at the colours
  dark.addEventListener("change", () => document.dispatchEvent(new Event("theme")));
})();
