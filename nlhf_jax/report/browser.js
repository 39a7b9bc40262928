// The sample browser. What it shows is the page's fragment (#sample=17&a=Nash-MD&b=SFT), so every
// view has a link, and back and forward work. Texts of users and models enter as text nodes only.

const STRONGEST = 4; // nats; a token's shade is full from there on
const DEFAULTS = { q: "", show: "all", margin: "0.1", judge: "", sort: "number" };

// An element; children are elements or text, never markup.
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}

class Browser {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.name = root.dataset.name;
    this.controls = Object.fromEntries(
      Array.from(root.querySelectorAll("[data-control]"), (x) => [x.dataset.control, x]));
    for (const side of ["a", "b"]) this.options(this.controls[side], data.players);
    this.options(this.controls.judge, data.judges);
    if (data.judges.length < 2) {
      for (const x of root.querySelectorAll(".several-judges")) x.remove();
    }
    if (!data.judges.length) for (const x of root.querySelectorAll(".judged")) x.remove();
    if (!data.measured) for (const x of root.querySelectorAll(".measured")) x.remove();
    root.hidden = false;
    this.state = this.read("");
    root.addEventListener("input", (event) => this.changed(event.target.dataset.control));
    root.addEventListener("click", (event) => this.clicked(event));
    this.open();
  }
  options(select, names) {
    select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  }
  within(selector) {
    return this.root.querySelector(selector);
  }

  // --- the fragment ----------------------------------------------------------------------------
  read(fragment) {
    const given = new URLSearchParams(fragment), names = this.data.players;
    const state = { ...DEFAULTS, judge: this.data.judges[0] ?? "" };
    for (const name of Object.keys(DEFAULTS)) state[name] = given.get(name) ?? state[name];
    const { a, b } = this.root.dataset;
    state.a = names.includes(given.get("a")) ? given.get("a") : a;
    state.b = names.includes(given.get("b")) ? given.get("b") : b;
    if (!Object.hasOwn(FILTERS, state.show)) state.show = DEFAULTS.show;
    if (!Object.hasOwn(SORTS, state.sort)) state.sort = DEFAULTS.sort;
    if (!this.data.judges.includes(state.judge)) state.judge = this.data.judges[0] ?? "";
    if (!(state.margin >= 0 && state.margin <= 0.5)) state.margin = DEFAULTS.margin;
    const sample = Number(given.get("sample") ?? NaN);
    state.sample = this.data.numbers.includes(sample) ? sample : null;
    return state;
  }
  link(changes = {}) {
    const state = { ...this.state, ...changes }, found = new URLSearchParams();
    if (this.name) found.set("in", this.name);
    for (const name of ["sample", "a", "b"]) if (state[name] !== null) found.set(name, state[name]);
    const usual = { ...DEFAULTS, judge: this.data.judges[0] ?? "" };
    for (const name of Object.keys(usual)) {
      if (String(state[name]) !== usual[name]) found.set(name, state[name]);
    }
    return `#${found}`;
  }
  // Reads the page's fragment, if it is about this browser.
  open() {
    const fragment = location.hash.slice(1), given = new URLSearchParams(fragment);
    const meant = (given.get("sample") || given.get("a")) && (given.get("in") ?? "") === this.name;
    if (meant || !fragment || this.shown === undefined) this.show(this.read(meant ? fragment : ""));
    if (meant) this.reveal();
  }
  reveal() {
    const { top, bottom } = this.root.getBoundingClientRect();
    if (top > innerHeight / 2 || bottom < innerHeight / 2) this.root.scrollIntoView();
  }
  go(changes, remember) {
    const link = this.link(changes);
    if (remember) location.hash = link; // the event that follows opens it
    else {
      try {
        history.replaceState(null, "", link);
      } catch {
        // a frame in a notebook has no address
      }
      this.show({ ...this.state, ...changes });
    }
  }

  // --- controls --------------------------------------------------------------------------------
  changed(control) {
    if (!control || !(control in this.state)) return;
    if (control === "margin" && !this.controls.margin.checkValidity()) return;
    this.go({ [control]: this.controls[control].value }, false);
    if (this.found.length && !this.found.includes(this.at)) {
      this.go({ sample: this.data.numbers[this.found[0]] }, false);
    }
  }
  clicked(event) {
    const button = event.target.closest("button[data-do]");
    if (button) this.act(button.dataset.do, button);
  }
  act(what, button) {
    const { a, b } = this.state;
    if (what === "next") this.step(1);
    else if (what === "previous") this.step(-1);
    else if (what === "swap") this.go({ a: b, b: a }, false);
    else if (what === "shade") this.shade();
    else if (what === "clear") this.go({ ...DEFAULTS, judge: this.state.judge }, false);
    else if (what === "pick") this.go({ b: button.value }, false);
    else if (what === "help") this.within("dialog").showModal();
    else if (what === "close") this.within("dialog").close();
  }
  step(by) {
    const at = this.found.indexOf(this.at);
    const next = this.found[at < 0 ? 0 : Math.min(Math.max(at + by, 0), this.found.length - 1)];
    if (next !== undefined && next !== this.at) {
      this.go({ sample: this.data.numbers[next] }, true);
    }
  }
  shade() {
    if (!this.data.measured) return;
    const plain = this.root.classList.toggle("unshaded");
    this.within("[data-do=shade]").setAttribute("aria-pressed", String(!plain));
  }

  // --- what is shown ---------------------------------------------------------------------------
  show(state) {
    const d = this.data, index = (name) => d.players.indexOf(name);
    const before = this.state;
    this.view = { a: index(state.a), b: index(state.b), judge: d.judges.indexOf(state.judge),
      margin: Number(state.margin) };
    const listed = ["a", "b", "q", "show", "margin", "judge", "sort"];
    const again = this.shown === undefined || listed.some((name) => state[name] !== before[name]);
    if (again) this.search(state);
    this.at = state.sample === null ? this.found[0] : d.numbers.indexOf(state.sample);
    this.state = state;
    if (state.sample === null) this.state = { ...state, sample: d.numbers[this.at] ?? null };
    this.shown = true;
    for (const name of listed) {
      const control = this.controls[name];
      if (control && control.value !== state[name]) control.value = state[name];
    }
    if (this.controls.margin) this.controls.margin.disabled = WITHOUT_MARGIN.includes(state.show);
    if (again) this.list();
    this.mark();
    this.sample();
  }
  search(state) {
    const d = this.data, words = wordsOf(state.q), keeps = FILTERS[state.show];
    const value = SORTS[state.sort];
    this.found = [...Array(d.size).keys()]
      .filter((n) => d.holds(n, words) && keeps(d, n, this.view))
      .map((n) => [n, value(d, n, this.view)])
      .sort(([m, x], [n, y]) => (Number.isNaN(x) - Number.isNaN(y)) || y - x || m - n)
      .map(([n]) => n);
  }
  list() {
    const d = this.data, v = this.view;
    const rows = this.found.map((n) => {
      const p = d.judges.length ? d.p(v.judge, n, v.a, v.b) : NaN, number = d.numbers[n];
      const start = d.samples[n][0].trim().slice(0, 90).replace(/\s+/g, " ");
      return h("li", {}, h("a", { href: this.link({ sample: number }), tabindex: -1, "data-at": n },
        h("span", { class: "number" }, number), h("span", { class: "start" }, start || "(empty)"),
        Number.isNaN(p) ? null
          : h("span", { class: "rate", style: `--p:${p}`, title: `P(A > B) ${p3(p)}` }, p.toFixed(2))));
    });
    this.within(".list ol").replaceChildren(...rows);
    this.within(".count").textContent = this.found.length === d.size
      ? plural(d.size, "sample") : `${this.found.length.toLocaleString("en")} of ${plural(d.size, "sample")}`;
    this.within(".none").hidden = this.found.length > 0;
  }
  // Which of the list is on show, and links as the state is now.
  mark() {
    this.within(".list a[aria-current]")?.removeAttribute("aria-current");
    for (const x of this.root.querySelectorAll('.list a[tabindex="0"]')) x.tabIndex = -1;
    const list = this.within(".list");
    const link = list.querySelector(`a[data-at="${this.at}"]`) ?? list.querySelector("a");
    if (!link) return;
    link.tabIndex = 0;
    if (Number(link.dataset.at) !== this.at) return;
    link.setAttribute("aria-current", "true");
    const offset = link.getBoundingClientRect().top - list.getBoundingClientRect().top;
    if (offset < 0 || offset > list.clientHeight - 40) list.scrollTop += offset - list.clientHeight / 3;
  }
  sample() {
    const d = this.data, v = this.view, n = this.at, place = this.within(".shown");
    const at = this.found.indexOf(n);
    this.within("[data-do=previous]").disabled = at <= 0;
    this.within("[data-do=next]").disabled = at >= 0 ? at >= this.found.length - 1 : !this.found.length;
    if (n === undefined) return place.replaceChildren();
    const [prompt, references] = d.samples[n], number = d.numbers[n];
    const link = h("a", { href: this.link({ sample: number }), class: "permalink",
      title: "A link to this sample" }, `Prompt ${number}`);
    place.replaceChildren(
      h("div", { class: "prompt" }, h("h3", { class: "label" }, link),
        h("div", { class: "text", tabindex: 0 }, prompt)),
      ...references.map((text) => h("div", { class: "reference-text" },
        h("h3", { class: "label" }, "Reference"), h("div", { class: "text" }, text))),
      h("div", { class: "pair" }, this.response("A", v.a), this.response("B", v.b)),
      v.a === v.b || !d.judges.length ? "" : this.judgements(n),
      this.others(n));
    this.highlight(place);
  }
  response(side, player) {
    const d = this.data, n = this.at, text = d.text(n, player), ratio = d.ratio(n, player);
    const words = text.split(/\s+/).filter(Boolean).length, tokens = d.tokens(n, player);
    const known = tokens.filter(([, value]) => !Number.isNaN(value)).length;
    const facts = [plural(words, "word"), known ? plural(tokens.length, "token") : null,
      Number.isNaN(ratio) ? null : `log π/μ ${signed(ratio)} nats`].filter(Boolean).join(" · ");
    const body = !text.trim() && !known ? h("p", { class: "nothing" }, "(empty)")
      : h("div", { class: "text tokens" }, tokens.map(([piece, value]) => token(piece, value)));
    const other = known && !d.shown(n, player).trim().startsWith(text.trim())
      ? h("details", {}, h("summary", {}, "As it was judged"), h("div", { class: "text" }, text || "(empty)"))
      : null;
    const numbers = known ? h("details", { class: "numbers" }, h("summary", {}, "Token by token"),
      h("ol", {}, tokens.map(([piece, value]) => h("li", {},
        h("code", {}, piece.replace(/\s/g, "␣") || "␣"),
        h("span", {}, Number.isNaN(value) ? "–" : signed(value)))))) : null;
    return h("div", { class: `response side-${side.toLowerCase()}` },
      h("h3", {}, h("span", { class: "badge" }, side), ` ${d.players[player]}`),
      h("p", { class: "facts" }, facts), body, other, numbers);
  }
  judgements(n) {
    const d = this.data, { a, b } = this.view;
    const rows = d.judges.map((name, judge) => {
      const [first, second] = d.orders_of(judge, n, a, b), p = mean([first, second]);
      if (Number.isNaN(p)) return h("tr", {}, h("th", { scope: "row" }, name), h("td", { colspan: 4 }, "not asked"));
      const turned = disagree([first, second], 0);
      return h("tr", {}, h("th", { scope: "row" }, name),
        h("td", { class: "n mean" }, p3(p)),
        h("td", { class: "track-cell" }, h("div", { class: "track", "aria-hidden": "true", style: `--p:${p}` },
          ...[first, second].map((x, i) => Number.isNaN(x) ? null : h("i", { class: i ? "second" : "first", style: `--p:${x}` })))),
        h("td", { class: "n" }, p3(first)), h("td", { class: "n" }, p3(second)),
        h("td", {}, turned ? h("span", { class: "turned" }, "the order turns it") : ""));
    });
    return h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Judgements" }, h("table", { class: "judgements" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Judge"),
        h("th", { scope: "col", class: "n" }, "P(A > B)"),
        h("td", { class: "ends" }, h("span", {}, "B"), h("span", {}, "A")),
        h("th", { scope: "col", class: "n first" }, "A first"),
        h("th", { scope: "col", class: "n second" }, "B first"), h("td", {}))),
      h("tbody", {}, rows)));
  }
  others(n) {
    const d = this.data, { a, b, judge } = this.view;
    const rest = d.players.map((_, player) => player).filter((x) => x !== a && x !== b);
    if (!rest.length) return "";
    const open = this.within(".others")?.open ?? false;
    return h("details", { class: "others", open },
      h("summary", {}, `The other ${plural(rest.length, "response")}`),
      h("dl", {}, rest.map((player) => {
        const p = d.judges.length ? d.p(judge, n, player, a) : NaN;
        return [h("dt", {}, d.players[player],
          Number.isNaN(p) ? null : h("small", {}, ` over A ${p3(p)}`),
          h("button", { type: "button", "data-do": "pick", value: d.players[player],
            "aria-label": `Show ${d.players[player]} as B` }, "as B")),
        h("dd", { class: "text" }, d.text(n, player).trim() || "(empty)")];
      })));
  }
  // Marks the words that were searched for, without touching the texts.
  highlight(place) {
    if (!globalThis.Highlight) return;
    const words = wordsOf(this.state.q), ranges = [];
    for (const text of words.length ? place.querySelectorAll(".text:not(.tokens)") : []) {
      const node = text.firstChild, low = node?.data?.toLowerCase() ?? "";
      if (low.length !== node?.data?.length) continue; // letters whose lower case is longer
      for (const word of words) {
        for (let at = low.indexOf(word); at >= 0; at = low.indexOf(word, at + word.length)) {
          const range = new Range();
          range.setStart(node, at);
          range.setEnd(node, at + word.length);
          ranges.push(range);
        }
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  }

  // --- keys ------------------------------------------------------------------------------------
  get visible() {
    const { top, bottom } = this.root.getBoundingClientRect();
    return top < innerHeight && bottom > 0;
  }
  press(key) {
    if (key === "/") {
      this.reveal();
      this.controls.q.focus();
      this.controls.q.select();
    } else if (key === "?") this.act("help");
    else if (!this.visible) return false;
    else if (key === "j" || key === "ArrowRight") this.step(1);
    else if (key === "k" || key === "ArrowLeft") this.step(-1);
    else if (key === "x") this.act("swap");
    else if (key === "s") this.act("shade");
    else return false;
    return true;
  }
}

function token(piece, value) {
  if (Number.isNaN(value)) return piece;
  const strength = Math.min(Math.abs(value) / STRONGEST, 1).toFixed(2);
  return h("span", { class: value < 0 ? "less" : "more", style: `--s:${strength}`,
    "data-tip": `${signed(value)} nats` }, piece);
}

const browsers = [];
const current = () => browsers.find((one) => one.visible) ?? browsers[0];

addEventListener("hashchange", () => browsers.forEach((one) => one.open()));
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog, [contenteditable]");
  if (typing && event.key === "Escape" && event.target.type === "search") event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !browsers.length) return;
  if (current().press(event.key)) event.preventDefault();
});

for (const root of document.querySelectorAll(".browser")) {
  unpack(root.nextElementSibling.textContent).then(
    (tree) => browsers.push(new Browser(root, new Data(tree))),
    (error) => { root.hidden = false; root.replaceChildren(`The samples cannot be unpacked: ${error}`); });
}
