// The data of the sample browser: unpacked, searched, filtered and sorted. `browser.py` packs it.

const [UNKNOWN, P_ZERO, RATIO_ZERO, RATIO_STEP, CUT_ZERO] = [2045, 256, 1040, 0.025, 48];

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

const mean = (values) => {
  const known = values.filter((value) => !Number.isNaN(value));
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : NaN;
};
const p3 = (p) => (Number.isNaN(p) ? "–" : p.toFixed(3));
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

// Numbers and texts by prompt (its place in the page) and player.
class Data {
  constructor(tree) {
    Object.assign(this, tree);
    this.size = this.samples.length;
    this.haystacks = [];
    this.measured = this.ratios.some((row) => row.some(Boolean)); // any log ratio
  }
  // P(a > b) by a judge: [where a was shown first, where b was].
  orders_of(judge, n, a, b) {
    const read = (i, j) => {
      const code = this.orders[judge][i * this.players.length + j].charCodeAt(n);
      return code === UNKNOWN ? NaN : (code - P_ZERO) / 1000;
    };
    return a === b ? [NaN, NaN] : [read(a, b), 1 - read(b, a)];
  }
  p(judge, n, a, b) {
    return mean(this.orders_of(judge, n, a, b));
  }
  shown(n, player) {
    return this.samples[n][2][player];
  }
  text(n, player) {
    return this.samples[n][3][player] ?? this.shown(n, player);
  }
  // [[piece, log ratio or NaN]]
  tokens(n, player) {
    const letters = Array.from(this.shown(n, player)), ratios = this.ratios[n][player];
    let at = 0;
    return Array.from(this.cuts[n][player], (cut, index) => {
      const piece = letters.slice(at, (at += cut.charCodeAt(0) - CUT_ZERO)).join("");
      const code = ratios ? ratios.charCodeAt(index) : UNKNOWN;
      return [piece, code === UNKNOWN ? NaN : (code - RATIO_ZERO) * RATIO_STEP];
    });
  }
  // Sum over the tokens of log pi / mu; NaN where it is not known.
  ratio(n, player) {
    const known = Array.from(this.ratios[n][player], (c) => c.charCodeAt(0));
    if (!known.length || known.includes(UNKNOWN)) return NaN;
    return known.reduce((sum, code) => sum + (code - RATIO_ZERO) * RATIO_STEP, 0);
  }
  holds(n, words) {
    this.haystacks[n] ??= this.samples[n].flat(2).join("\n").toLowerCase();
    return words.every((word) => this.haystacks[n].includes(word));
  }
}

const wordsOf = (query) => query.toLowerCase().split(/\s+/).filter(Boolean);
const disagree = (values, margin) =>
  Math.max(...values) > 0.5 && Math.min(...values) < 0.5 && spread(values) >= margin;
const spread = (values) => {
  const known = values.filter((value) => !Number.isNaN(value));
  return known.length ? Math.max(...known) - Math.min(...known) : -1;
};

// What a filter keeps: (data, prompt, view) -> boolean.
const FILTERS = {
  all: () => true,
  a: (d, n, v) => d.p(v.judge, n, v.a, v.b) >= 0.5 + v.margin,
  b: (d, n, v) => d.p(v.judge, n, v.a, v.b) <= 0.5 - v.margin,
  tie: (d, n, v) => Math.abs(d.p(v.judge, n, v.a, v.b) - 0.5) < v.margin,
  order: (d, n, v) => disagree(d.orders_of(v.judge, n, v.a, v.b), v.margin),
  judges: (d, n, v) => disagree(byJudge(d, n, v), v.margin),
  empty: (d, n, v) => !d.text(n, v.a).trim() || !d.text(n, v.b).trim(),
  same: (d, n, v) => d.text(n, v.a).trim() === d.text(n, v.b).trim(),
};
const WITHOUT_MARGIN = ["all", "empty", "same"];
const byJudge = (d, n, v) => d.judges.map((_, judge) => d.p(judge, n, v.a, v.b));

// What samples are sorted by, the largest first: (data, prompt, view) -> number.
const SORTS = {
  number: (d, n) => -n,
  a: (d, n, v) => d.p(v.judge, n, v.a, v.b),
  b: (d, n, v) => -d.p(v.judge, n, v.a, v.b),
  order: (d, n, v) => spread(d.orders_of(v.judge, n, v.a, v.b)),
  judges: (d, n, v) => spread(byJudge(d, n, v)),
  ratio_a: (d, n, v) => d.ratio(n, v.a),
  ratio_b: (d, n, v) => d.ratio(n, v.b),
  long: (d, n, v) => d.text(n, v.a).length - d.text(n, v.b).length,
};
