"""Generated bad inputs for every reader: `python -m tests.nasty.fuzz --examples=10000 --seed=0`.

Changes one file of a reader's good example: bytes (cut, flipped, filled in, doubled), or, where it
is JSON, a value inside. Prints how many inputs were accepted and refused, and what else came of
any: of that there must be none.
"""

import argparse
import collections
import json
import sys
from typing import Any

import hypothesis
from hypothesis import strategies as st

from tests.nasty.readers import ACCEPTED, READERS, REFUSED, Files, Reader, outcome

# Readers whose inputs take tens of milliseconds get fewer of them.
_SHARES = {"seqio task": 0.2, "TFDS dataset": 0.2}
_WORDS = (
    b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\xe2\x80\xa8", b'"',
    b"{", b"[" * 2000, b"1e999", b"NaN", b"-1", b"null", b"\\ud83d", b"</s>", b"<extra_id_0>",
    b"<script>", b"../../x", b"\x1f\x8b", b"\xdd\xff\xff\xff\xff", b"\x80\x04cos\nsystem\n", b"%s",
    b"{prompt}",
    b"@x()", b"include 'x'\n",
)  # fmt: skip
_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([10**400, -(2**63), 1 << 53, 0.5, -0.0, 1e308, float("nan"), float("inf")])
    | st.text(max_size=12)
    | st.sampled_from(
        ["", "\ud83d", "../x", "/x", "a\0b", "<b>", "$x$", "`|*", "x" * 3000, "{a.b}"]
    )
)
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def _changed_bytes(draw, content: bytes) -> bytes:
    at = draw(st.integers(0, len(content)))
    kind = draw(
        st.sampled_from(["cut", "flip", "insert", "double", "replace", "word", "new", "swap"])
    )
    if kind == "cut":
        return content[:at]
    if kind == "new":
        return draw(st.binary(max_size=200))
    if kind == "double":
        length = draw(st.integers(0, 300))
        return content[:at] + content[at : at + length] * 2 + content[at + length :]
    if kind == "swap":
        other = draw(st.integers(0, len(content)))
        first, second = sorted((at, other))
        return content[second:] + content[first:second] + content[:first]
    if kind == "flip" and content:
        changed = bytearray(content)
        for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
            changed[place] ^= draw(st.integers(1, 255))
        return bytes(changed)
    word = draw(st.sampled_from(_WORDS)) if kind == "word" else draw(st.binary(max_size=20))
    return content[:at] + word + content[at + (len(word) if kind == "replace" else 0) :]


def _places(tree: Any, place: tuple = ()) -> list[tuple]:
    found = [place]
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        found += _places(value, (*place, key))
    return found


def _with(tree: Any, place: tuple, value: Any, gone: bool) -> Any:
    if not place:
        return value
    key, *rest = place
    changed = dict(tree) if isinstance(tree, dict) else list(tree)
    if gone and not rest:
        del changed[key]
    else:
        changed[key] = _with(tree[key], tuple(rest), value, gone)
    return changed


@st.composite
def _changed_json(draw, content: bytes) -> bytes:
    """A line, or the whole, with another value somewhere inside; the bytes changed if no JSON."""
    try:
        whole = [json.loads(content)]
    except ValueError:
        try:
            whole = [json.loads(line) for line in content.splitlines()]
        except ValueError:
            return draw(_changed_bytes(content))
    if not whole:
        return draw(_changed_bytes(content))
    number = draw(st.integers(0, len(whole) - 1))
    place = draw(st.sampled_from(_places(whole[number])))
    gone = bool(place) and draw(st.booleans()) and draw(st.booleans())
    whole[number] = _with(whole[number], place, draw(_values), gone)
    return "\n".join(map(json.dumps, whole)).encode()


@st.composite
def cases(draw, good: Files, main_file: str) -> dict[str, bytes]:
    """The good files of a reader, one of them changed or gone; half of the time the main one."""
    name = draw(st.sampled_from([main_file, *sorted(good)]) | st.just(main_file))
    if draw(st.integers(0, 30)) == 0:
        return {other: content for other, content in good.items() if other != name}
    return {**good, name: draw(_changed_json(good[name]) | _changed_bytes(good[name]))}


def fuzz(reader: Reader, examples: int, seed: int | None) -> tuple[collections.Counter, list[str]]:
    """Counts of what came of `examples` inputs, and the tracebacks; no seed: always the same."""
    counts: collections.Counter = collections.Counter()
    tracebacks: list[str] = []

    def run(files: dict[str, bytes]) -> None:
        met, said = outcome(reader, files)
        counts[met] += 1
        if met not in (ACCEPTED, REFUSED):
            tracebacks.append(said)

    settings = hypothesis.settings(
        max_examples=examples,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    test = settings(hypothesis.given(cases(reader.good(), reader.main_file))(run))
    if seed is not None:
        test = hypothesis.seed(seed)(test)
    test()
    return counts, tracebacks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000, help="in all, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="of them all")
    options = parser.parse_args()
    names = options.reader or list(READERS)
    shares = {name: _SHARES.get(name, 1.0) for name in names}
    print(f"{'reader':24}{'inputs':>8}{'accepted':>10}{'refused':>9}{'tracebacks':>12}")
    total: collections.Counter = collections.Counter()
    for name in names:
        examples = 1 + round(options.examples * shares[name] / sum(shares.values()))
        counts, tracebacks = fuzz(READERS[name], examples, options.seed)
        row = (sum(counts.values()), counts[ACCEPTED], counts[REFUSED], len(tracebacks))
        print(f"{name:24}{row[0]:>8}{row[1]:>10}{row[2]:>9}{row[3]:>12}", flush=True)
        for text in dict.fromkeys(tracebacks):
            print(text, file=sys.stderr)
        total.update(dict(zip("iart", row, strict=True)))
    print(f"{'all':24}{total['i']:>8}{total['a']:>10}{total['r']:>9}{total['t']:>12}")
    return 1 if total["t"] else 0


if __name__ == "__main__":
    sys.exit(main())
