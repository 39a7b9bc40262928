// What every report has: the choice of light or dark, the contents that say where one is, tips.
"use strict";

// --- light or dark: as the system has it, until somebody chooses; kept where the page is kept ----
const THEMES = ["auto", "light", "dark"];
const root = document.documentElement;
function keptTheme() {
  try {
    return localStorage.getItem("nlhf_jax theme");
  } catch {
    return null; // a browser that keeps nothing of files
  }
}
function setTheme(theme) {
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = { auto: "◐", light: "☀", dark: "☾" }[theme];
  button.title = button.ariaLabel = `Colours: ${theme}; change them`;
  button.value = theme;
  try {
    localStorage.setItem("nlhf_jax theme", theme);
  } catch {
    // not kept
  }
}
const kept = keptTheme();
setTheme(THEMES.includes(kept) ? kept : "auto");
document.getElementById("theme").hidden = false;
document.getElementById("theme").addEventListener("click", (event) => {
  setTheme(THEMES[(THEMES.indexOf(event.currentTarget.value) + 1) % THEMES.length]);
});

// --- contents ------------------------------------------------------------------------------------
const links = new Map(Array.from(document.querySelectorAll("nav a"), (a) => [a.hash.slice(1), a]));
function markPlace() {
  const sections = Array.from(document.querySelectorAll("main section[id]"));
  const ended = scrollY + innerHeight >= root.scrollHeight - 2; // a last section may be short
  const passed = sections.filter((one) => ended || one.getBoundingClientRect().top < innerHeight / 3);
  const here = links.get((passed.at(-1) ?? sections[0])?.id);
  if (!here || here.hasAttribute("aria-current")) return;
  for (const link of links.values()) link.removeAttribute("aria-current");
  here.setAttribute("aria-current", "true");
  const strip = here.closest("ol"); // sideways on a phone
  strip.scrollTo({ left: here.offsetLeft - strip.offsetLeft - strip.clientWidth / 3 });
}
addEventListener("scroll", () => requestAnimationFrame(markPlace), { passive: true });
markPlace();

// --- in a notebook the page is a frame without an address, where "#x" would mean the notebook's ---
addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link || location.protocol !== "about:") return;
  event.preventDefault();
  location.hash = link.getAttribute("href");
});

// --- tips: the data-tip of what is pointed at or touched -----------------------------------------
const tip = document.body.appendChild(document.createElement("div"));
tip.className = "tip";
tip.hidden = true;
tip.ariaHidden = "true"; // said elsewhere on the page too
function showTip(event) {
  const over = event.target.closest?.("[data-tip], svg.chart");
  const text = over?.dataset.tip ?? (over && readCurves(over, event.clientX));
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  let box = over.getClientRects()[0] ?? over.getBoundingClientRect();
  if (!over.dataset.tip) box = new DOMRect(event.clientX, box.top + 20, 0, box.height - 20);
  const left = box.left + box.width / 2 - tip.offsetWidth / 2;
  tip.style.left = `${Math.max(4, Math.min(left, root.clientWidth - tip.offsetWidth - 4))}px`;
  const above = box.top - tip.offsetHeight - 6;
  tip.style.top = `${above < 4 ? box.bottom + 6 : above}px`;
}
// What the curves of a chart come to near a place of the screen, a line each.
function readCurves(chart, place) {
  const box = chart.getBoundingClientRect();
  const at = ((place - box.left) / box.width) * chart.viewBox.baseVal.width;
  const value = (axis, pixels) => {
    const [offset, slope] = chart.dataset[axis].split(" ", 2).map(Number);
    return Number(((pixels - offset) / slope).toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });
  };
  const near = Array.from(chart.querySelectorAll(".line"), (line) => {
    const points = Array.from(line.getAttribute("d").matchAll(/([-\d.]+),([-\d.]+)/g), ([, x, y]) => [Number(x), Number(y)]);
    const [x, y] = points.sort(([x], [other]) => Math.abs(x - at) - Math.abs(other - at))[0] ?? [Infinity];
    return { x, text: `${line.dataset.label}: ${value("y", y)}` };
  }).filter(({ x }) => Math.abs(x - at) < 12);
  if (!near.length) return "";
  const label = chart.dataset.x.split(" ").slice(2).join(" ");
  return [`${label} ${value("x", near[0].x)}`, ...near.map(({ text }) => text)].join("\n");
}
addEventListener("pointerover", showTip);
addEventListener("pointermove", (event) => event.target.closest?.("svg.chart") && showTip(event));
addEventListener("pointerdown", showTip);
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// --- paper has no folds --------------------------------------------------------------------------
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details.fold:not([open])")) {
    fold.open = fold.wasFolded = true;
  }
});
addEventListener("afterprint", () => {
  for (const fold of document.querySelectorAll("details.fold")) {
    if (fold.wasFolded) fold.open = fold.wasFolded = false;
  }
});
