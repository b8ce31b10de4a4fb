// Light or dark, before anything is painted: the choice kept here, else the system's.
"use strict";

(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("flashmoe.theme");
  } catch {
    // Without storage the system decides.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
