"use strict";
// Light or dark colours: the system's setting until the reader chooses.
function startTheme() {
  const button = document.getElementById("theme");
  const themes = ["", "light", "dark"];
  const said = { "": "system setting", light: "light", dark: "dark" };
  let theme = "";
  const set = (name) => {
    theme = themes.includes(name) ? name : "";
    document.documentElement.dataset.theme = theme;
    button.textContent = { "": "◐", light: "☀", dark: "☾" }[theme];
    button.setAttribute("aria-label", `Colours: ${said[theme]}`);
    button.title = button.getAttribute("aria-label");
  };
  let kept = "";
  try { kept = localStorage.getItem("ray-wsss-theme") || ""; } catch { /* not allowed for this file */ }
  set(kept);
  button.addEventListener("click", () => {
    set(themes[(themes.indexOf(theme) + 1) % themes.length]);
    try { localStorage.setItem("ray-wsss-theme", theme); } catch { /* as above */ }
  });
}

startTheme();
