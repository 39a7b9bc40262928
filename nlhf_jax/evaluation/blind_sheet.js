
"use strict";
(() => {
const at = (id) => document.getElementById(id);
const sheet = JSON.parse(at("sheet").textContent);
const items = sheet.items, count = items.length;
const ids = new Set(items.map((item) => item.id));
const place = "nlhf-sheet-" + sheet.id;  // pages from disk share one store
const words = {1: "response 1 is better", 2: "response 2 is better", tie: "equally good"};
const shortcuts = {1: "1", 2: "2", "=": "tie", 0: "tie", t: "tie"};

let answers = new Map();  // id -> "1", "2" or "tie"
let rater = "", keys = true, here = 0, saved = true;
const past = [];  // [answers, which comparison was shown]

// --- what stays over a reload ---------------------------------------------------------------------

function sound(found) {
  const pairs = found && Array.isArray(found.answers) ? found.answers : [];
  return new Map(pairs.filter((pair) => Array.isArray(pair) && ids.has(pair[0]) && Object.hasOwn(words, pair[1])));
}

function recall() {
  try {
    const found = JSON.parse(localStorage.getItem(place) || "null");
    answers = sound(found);
    rater = found && typeof found.rater === "string" ? found.rater : "";
    keys = !found || found.keys !== false;
    saved = !answers.size || Boolean(found.saved);
  } catch {
    // Nothing usable is kept: `keep` says so where nothing can be.
  }
}

function keep() {
  try {
    localStorage.setItem(place, JSON.stringify({rater, keys, saved, answers: [...answers]}));
    at("notice").hidden = true;
    return true;
  } catch {
    at("notice").textContent = "This browser keeps nothing for this page: save your answers before you close or reload it.";
    at("notice").hidden = false;
    return false;
  }
}

// --- one comparison -------------------------------------------------------------------------------

function write(id, content) {
  const box = at(id);
  box.textContent = content.replace(/\r\n?/g, "\n") || "(empty)";
  box.classList.toggle("empty", !content);
}

function show() {
  const item = items[here], answer = answers.get(item.id);
  at("where").textContent = `Comparison ${here + 1} of ${count}`;
  write("prompt", item.prompt);
  write("first", item.first);
  write("second", item.second);
  for (const side of ["1", "2"]) at("card-" + side).classList.toggle("chosen", answer === side);
  for (const button of document.querySelectorAll(".answer")) {
    button.setAttribute("aria-pressed", String(button.dataset.answer === answer));
  }
  at("previous").disabled = here === 0;
  at("next").disabled = here === count - 1;
  at("undo").disabled = !past.length;
  const complete = answers.size === count;
  at("unanswered").disabled = complete;
  at("done").hidden = !complete;
  at("progress").value = answers.size;
  at("progress-text").textContent = `${answers.size} of ${count} answered`;
  if (at("overview").open) draw();
}

function go(number) {
  if (number < 0 || number >= count) return;
  here = number;
  show();
  at("prompt").scrollTop = 0;
  at("where").focus({preventScroll: true});
  window.scrollTo(0, 0);
}

function unanswered() {
  for (let step = 1; step <= count; step++) {
    const number = (here + step) % count;
    if (!answers.has(items[number].id)) return number;
  }
  return -1;
}

function change(after) {
  past.push([answers, here]);
  answers = after;
  saved = false;
  keep();
}

function choose(answer) {
  const number = here + 1;
  change(new Map(answers).set(items[here].id, answer));
  const next = unanswered();
  say(next < 0 ? "All are answered: save them now." : `Comparison ${number}: ${words[answer]}.`);
  go(next < 0 ? here : next);
}

function undo() {
  if (!past.length) return;
  const [before, number] = past.pop();
  answers = before;
  saved = false;
  keep();
  go(number);
  say(`Undone: comparison ${number + 1} as it was.`);
}

function say(sentence) { at("status").textContent = sentence; }

// --- all comparisons ------------------------------------------------------------------------------

function draw() {
  const grid = at("grid");
  if (!grid.children.length) {
    items.forEach((item, number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = number + 1;
      button.addEventListener("click", () => go(number));
      grid.appendChild(document.createElement("li")).append(button);
    });
  }
  items.forEach((item, number) => {
    const button = grid.children[number].firstChild, answer = answers.get(item.id);
    button.toggleAttribute("data-answered", Boolean(answer));
    button.setAttribute("aria-label", `Comparison ${number + 1}, ${answer ? words[answer] : "no answer"}`);
    if (number === here) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
}

// --- out and in -----------------------------------------------------------------------------------

const answered = () => items.filter((item) => answers.has(item.id)).map((item) => ({id: item.id, answer: answers.get(item.id)}));

function json() {
  const lines = answered().map((one) => "  " + JSON.stringify(one));
  return `{\n "sheet": ${JSON.stringify(sheet.id)},\n "rater": ${JSON.stringify(rater)},\n "answers": [\n${lines.join(",\n")}\n ]\n}\n`;
}

function csv() {
  // A spreadsheet would take such a name for a formula.
  const name = '"' + rater.replace(/^(?=\s*[=+\-@＝＋－＠'])/, "'").replaceAll('"', '""') + '"';
  return "id,answer,rater\r\n" + answered().map((one) => `${one.id},${one.answer},${name}\r\n`).join("");
}

function download(content, type, end) {
  const link = document.createElement("a");
  const name = rater.trim().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "");
  link.download = `answers-${sheet.id}${name ? "-" + name : ""}.${end}`;
  link.href = URL.createObjectURL(new Blob([content], {type}));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  leave(`Saved as ${link.download}.`);
}

async function copy() {
  const text = json(), box = at("copied");
  try {
    await navigator.clipboard.writeText(text);
    leave("Copied: paste it where you send your answers.");
  } catch {
    box.value = text;
    box.hidden = at("copied-label").hidden = false;
    box.select();
    tell("This browser does not let the page copy: do it by hand.", true);
  }
}

function leave(sentence) {
  saved = true;
  keep();
  tell(sentence + (rater.trim() ? "" : " It has no name in it yet."));
}

function tell(sentence, bad = false) {
  at("answers-status").textContent = sentence;
  at("answers-status").classList.toggle("bad", bad);
}

/** What a saved file holds, as JSON or CSV; throws a sentence if it is another sheet's or none. */
function read(content) {
  let found;
  if (content.trimStart().startsWith("{")) {
    try {
      found = JSON.parse(content);
    } catch {
      throw new Error("the file is damaged.");
    }
    if (found.sheet !== sheet.id) throw new Error("it has the answers to another sheet.");
  } else {
    const [head, ...lines] = content.replace(/^\uFEFF/, "").split(/\r?\n/);
    if (!/^id,answer(,|$)/.test(head)) throw new Error("it is no file that was saved here.");
    const rows = lines.filter(Boolean).map((line) => line.match(/^([^,"]*),([^,"]*)(?:,"((?:[^"]|"")*)")?$/));
    if (!rows.every(Boolean)) throw new Error("the file is damaged.");
    const name = rows.length && rows[0][3] ? rows[0][3].replaceAll('""', '"').replace(/^'(?=\s*[=+\-@＝＋－＠'])/, "") : "";
    found = {rater: name, answers: rows.map((row) => ({id: row[1], answer: row[2]}))};
  }
  const pairs = Array.isArray(found.answers) ? found.answers.map((one) => [one && one.id, one && one.answer]) : [];
  if (!pairs.length) throw new Error("there are no answers in it.");
  if (!pairs.every(([id]) => ids.has(id))) throw new Error("it has the answers to another sheet.");
  const good = sound({answers: pairs});
  if (good.size !== pairs.length) throw new Error("the file is damaged.");
  return [good, typeof found.rater === "string" ? found.rater : ""];
}

async function take(file) {
  try {
    const [found, name] = read(await file.text());
    const other = [...found].filter(([id, answer]) => answers.has(id) && answers.get(id) !== answer).length;
    change(new Map([...answers, ...found]));
    if (!rater) rater = at("rater").value = name;
    keep();
    const next = unanswered();
    here = answers.has(items[here].id) && next >= 0 ? next : here;
    show();
    count_answers();
    tell(`${found.size} answers read` + (other ? `, ${other} in place of yours: Undo takes them back.` : "."));
  } catch (error) {
    tell(`${file.name}: ${error.message}`, true);
  }
}

function count_answers() {
  const left = count - answers.size;
  at("answers-count").textContent = `${answers.size} of ${count} answered` + (left ? `; ${left} to go, and you can go on later.` : ".");
}

function open_answers() {
  tell("");
  count_answers();
  at("rater").value = rater;
  at("copied").hidden = at("copied-label").hidden = true;
  at("answers").showModal();
}

// --- what people do -------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || at("answers").open || !keys) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (Object.hasOwn(shortcuts, key)) choose(shortcuts[key]);
  else if (key === "ArrowLeft") go(here - 1);
  else if (key === "ArrowRight") go(here + 1);
  else if (key === "u" || key === "Backspace") undo();
  else if (key === "n") go(unanswered());
  else if (key === "s") open_answers();
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll(".answer")) {
  button.addEventListener("click", () => choose(button.dataset.answer));
}
at("previous").addEventListener("click", () => go(here - 1));
at("next").addEventListener("click", () => go(here + 1));
at("undo").addEventListener("click", undo);
at("unanswered").addEventListener("click", () => go(unanswered()));
at("overview").addEventListener("toggle", show);
at("open-answers").addEventListener("click", open_answers);
at("done-save").addEventListener("click", open_answers);
at("keys").addEventListener("change", () => { keys = at("keys").checked; keep(); });
at("rater").addEventListener("input", () => { rater = at("rater").value; saved = false; keep(); });
at("rater").addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
at("save-json").addEventListener("click", () => download(json(), "application/json", "json"));
at("save-csv").addEventListener("click", () => download(csv(), "text/csv", "csv"));
at("copy").addEventListener("click", copy);
at("import").addEventListener("change", (event) => {
  if (event.target.files.length) take(event.target.files[0]);
  event.target.value = "";
});
window.addEventListener("storage", (event) => {  // another tab with this sheet
  if (event.key !== place || event.newValue === null) return;
  recall();
  at("keys").checked = keys;
  show();
});
window.addEventListener("beforeunload", (event) => {
  if (!saved && !keep()) event.preventDefault();  // closing would lose them
});

recall();
const kept = keep();
at("keys").checked = keys;
here = Math.max(0, items.findIndex((item) => !answers.has(item.id)));
show();
if (answers.size) say(`Welcome back: ${answers.size} of ${count} answered.`);
else if (kept) say("Your answers stay in this browser as you go.");
})();
