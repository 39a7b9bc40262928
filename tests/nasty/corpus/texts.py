"""Bad lines, prompts, data sets, vocabularies and gin files."""

import json
from collections.abc import Iterator

from tests.data import tldr_rows
from tests.nasty.corpus.case import Case, one
from tests.nasty.readers import ACCEPTED, READERS, REFUSED, ROWS, TLDR, lines

GOOD = lines(ROWS["sft"])
BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b\x08\x00" + bytes(range(64))


def cases() -> Iterator[Case]:
    yield from _lines()
    yield from _prompts()
    yield from _tldr()
    yield from _vocabularies()
    yield from _gin()


def _row(**changes: object) -> bytes:
    return lines(ROWS["sft"] | changes)


def _lines() -> Iterator[Case]:
    yield from one(
        "lines of sft",
        ACCEPTED,
        {
            "a byte order mark": BOM + GOOD,
            "CRLF": GOOD.replace(b"\n", b"\r\n") * 2,
            "a lone CR between keys": b'{"prompt":\r"a",\r"completion": "b"}\n',
            "U+2028 and U+2029 inside a text": _row(prompt="one\u2028two\u2029three\x85four"),
            "no newline at the end": GOOD + GOOD.rstrip(b"\n"),
            "a word of 100,000 characters": _row(prompt="x" * 100_000),
            "a line of 4 MB": _row(prompt="my boss " * 500_000),
            "control characters": _row(prompt="a\x01\x07\x1b[31mred\x7f\x9b"),
            "a NUL as an escape": _row(prompt="a\0b"),
            "right to left": _row(prompt="\u202eevil\u202c \u05d0\u05d1 \u200f"),
            "emoji": _row(prompt="👩‍👩‍👧‍👦🏳️‍🌈", completion="🥲"),
            "a thousand combining marks": _row(prompt="e" + "\u0301" * 1000),
            "names of special tokens": _row(prompt="</s> <pad> <unk> <extra_id_0> <s>"),
            "HTML and a template": _row(completion="<script>alert(1)</script> {{7*7}} {prompt} %s"),
            "equal ids": lines(*[ROWS["sft"] | {"id": 7}] * 3),
            "keys that mean nothing": _row(__class__="x", id=None, nested={"a": {"a": 1, "b": []}}),
            "an endless number where none means anything": _row(n=1).replace(b"1", b"1e999"),
            "gin in a text": _row(prompt="include 'x.gin'\nSEED = @os.system"),
        },
    )
    deep = b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b', "completion": "a"}\n'
    yield from one(
        "lines of sft",
        REFUSED,
        {
            "an empty file": (b"", "the file has no lines"),
            "a byte order mark alone": (BOM, "the file has no lines"),
            "blank lines alone": (b"\n\r\n \n", "the file has no lines"),
            "NUL bytes": (b"\0" * 100 + b"\n", "line 1"),
            "a NUL byte in a text": (b'{"prompt": "a\0", "completion": "b"}\n', "not valid JSON"),
            "UTF-16": (GOOD.decode().encode("utf-16"), "not valid UTF-8"),
            "Latin-1": ('{"prompt": "grün", "completion": "b"}\n'.encode("latin-1"), "UTF-8"),
            "an overlong encoding": (b'{"prompt": "\xc0\xaf", "completion": "b"}\n', "UTF-8"),
            "a surrogate in UTF-8": (b'{"prompt": "\xed\xa0\x80", "completion": "b"}\n', "UTF-8"),
            "half a surrogate pair": (b'{"prompt": "\\ud83d", "completion": "b"}\n', "surrogate"),
            "a key twice": (b'{"prompt": "a", "prompt": "b", "completion": "c"}\n', "twice"),
            "another key twice": (GOOD.replace(b"{", b'{"id": 1, "id": 2, '), "twice"),
            "nested deeply": (b"[" * 100_000 + b"\n", "nested too deeply"),
            "nested deeply, closed": (deep, "'prompt' must be text"),
            "5,000 digits": (b'{"prompt": ' + b"1" * 5000 + b"}\n", "digits"),
            "infinity": (b'{"prompt": 1e999, "completion": "b"}\n', "must be text, met Infinity"),
            "NaN": (b"NaN\n", "wanted a JSON object"),
            "null": (b"null\n", "wanted a JSON object"),
            "a string": (b'"prompt"\n', "wanted a JSON object"),
            "gzip": (GZIP, "compressed with gzip"),
            "a page of HTML": (b"<!doctype html>\n<html></html>\n", "not valid JSON"),
            "YAML": (b"prompt: a\ncompletion: b\n", "not valid JSON"),
            "a Python dict": (b"{'prompt': 'a', 'completion': 'b'}\n", "not valid JSON"),
            "a call": (b"__import__('os').system('true')\n", "not valid JSON"),
            "one object over lines": (b'{"prompt": "a",\n"completion": "b"}\n', "line 1"),
            "two objects in a line": (GOOD.rstrip() + GOOD, "not valid JSON"),
            "lone CRs for lines": (GOOD.replace(b"\n", b"\r") * 2, "not valid JSON"),
            "white space for a text": (_row(completion=" \u2003\n"), "'completion' is empty"),
            "a list for a text": (_row(completion=["a"]), "must be text"),
            "escapes for a terminal where a text must be": (
                _row(completion=["\x1b]0;owned\x07\u202e"]), "must be text",
            ),
            "text of an emoji cut in half in an error": (
                b'{"prompt": ["\\ud83d"], "completion": "a"}\n', "must be text",
            ),
        },
    )  # fmt: skip
    votes = ROWS["preferences"]
    weights = {
        "a weight of one half": 0.5, "a weight over one": 1.0000001, "a negative weight": -1,
        "a weight as text": "0.9", "a weight that is true": True, "a weight that is null": None,
    }  # fmt: skip
    yield from one(
        "lines of preferences",
        REFUSED,
        {
            name: (lines(votes | {"weight": weight}), "'weight' must be")
            for name, weight in weights.items()
        }
        | {
            f"a weight of {number}": (
                lines(votes | {"weight": 7}).replace(b"7", number.encode()),
                "'weight' must be",
            )
            for number in ("NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400)
        }
        | {"one text twice": (lines(votes | {"rejected": votes["chosen"]}), "the same text")},
    )  # fmt: skip
    yield from one("lines of prompts", REFUSED, {"no prompt": (b'{"text": "a"}\n', "missing")})
    yield from one(
        "seqio task",
        ACCEPTED,
        {
            "names of special tokens": _row(prompt="</s> <pad> <unk> <extra_id_0> </s>"),
            "a NUL": _row(prompt="a\0b\0"),
            "every white space": _row(prompt="a\u00a0b\u2003c\u200bd\ufeffe\u2028f\x85g"),
            "ligatures and wide forms": _row(prompt="ﬁ Ｆｕｌｌ ½ Ⅷ ㎏"),
            "emoji and marks": _row(prompt="👩‍👩‍👧 e\u0301\u0301 \u202eabc"),
            "one piece that is SentencePiece's own": _row(prompt="▁ ▁▁ ⁇ ▅"),
        },
    )


def _prompts() -> Iterator[Case]:
    yield from one(
        "prompts, text",
        ACCEPTED,
        {
            "a byte order mark": BOM + b"my boss\n",
            "CRLF and CR": b"one\r\ntwo\rthree",
            "a byte order mark before JSON lines": BOM + lines(ROWS["prompts"]),
            "a lone CR inside JSON": b'{"prompt":\r"a"}\n',
            "special tokens": b"</s> <pad> <extra_id_0>\n",
        },
    )
    yield from one(
        "prompts, text",
        REFUSED,
        {
            "empty": (b"", "holds no prompt"),
            "gzip": (GZIP, "not UTF-8"),
            "half JSON": (b'{"prompt": "a"\n', "not valid JSON"),
        },
    )
    yield from one(
        "prompts, of a form",
        REFUSED,
        {
            "another text": (b"what shall I do?\n", "not of the form"),
            "a field missing": (b'{"title": "a", "post": "b"}\n', "the key 'prompt' is missing"),
            "a field that is no text": (
                b'{"subreddit": 1, "title": "a", "post": "b"}\n', "must be text",
            ),
            "the form's beginning 100,000 times": (b"SUBREDDIT: r/" + b"TITLE: " * 100_000, "form"),
        },
    )  # fmt: skip
    yield from one(
        "prompts, of a form",
        ACCEPTED,
        {
            "braces and the form inside a field": lines(
                {"subreddit": "{post}", "title": "{0.__class__}", "post": TLDR.form}
            )
        },
    )


def _tldr() -> Iterator[Case]:
    yield from one(
        "tldr's posts",
        REFUSED,
        {
            "empty": (b"", "has no lines"),
            "a page of HTML": (b"<html>\n", "a page of HTML"),
            "cut": (lines(tldr_rows.post(1))[:-20], "not whole"),
            "gzip": (GZIP, "compressed with gzip"),
            "nested deeply": (b"[" * 100_000 + b"\n", "nested too deeply"),
            "a blank post": (lines(tldr_rows.post(1) | {"post": " "}), "'post' is blank"),
        },
    )
    vote = tldr_rows.vote(1)
    yield from one(
        "tldr's votes",
        REFUSED,
        {
            "a choice of 2": (lines(vote | {"choice": 2}), "'choice' must be 0 or 1"),
            "a choice that is true": (lines(vote | {"choice": True}), "'choice' must be"),
            "a confidence of 10**400": (
                lines(vote)[:-2] + b', "extra": {"confidence": 1' + b"0" * 400 + b"}}\n",
                "twice",
            ),
            "three summaries": (lines(vote | {"summaries": [{}] * 3}), "two objects"),
            "info as a list": (lines(vote | {"info": []}), "'info' must be an object"),
        },
    )
    good = READERS["TFDS dataset"].good()
    record = next(name for name in good if ".tfrecord" in name and "train" in name)
    info = READERS["TFDS dataset"].main_file
    nameless = {key: value for key, value in json.loads(good[info]).items() if key != "name"}
    for name, files in {
        "records cut": {record: good[record][:-30]},
        "records of garbage": {record: b"\xff" * 500},
        "no records": {record: None},
        "its description cut": {info: good[info][:40]},
        "its description of another kind": {info: b"[]"},
        "its description without a name": {info: json.dumps(nameless).encode()},
    }.items():
        yield Case("TFDS dataset", name, files, REFUSED)


def _vocabularies() -> Iterator[Case]:
    model = READERS["vocabulary"].good()["words.model"]
    yield from one(
        "vocabulary",
        REFUSED,
        {
            "empty": b"",
            "garbage": (b"\xff" * 400, "not a SentencePiece model"),
            "text": (b"the\nof\nand\n", "not a SentencePiece model"),
            "cut": (model[: len(model) // 2 + 1], ""),
            "a pickle": (b"cos\nsystem\n(S'true'\ntR.", "not a SentencePiece model"),
            "a length beyond the file": (b"\x0a\xff\xff\xff\xff\x0f", "not a SentencePiece model"),
        },
    )


def _gin() -> Iterator[Case]:
    first = b"from __gin__ import dynamic_registration\n"
    yield from one(
        "gin",
        REFUSED,
        {
            "a module that is not there": (first + b"from nowhere_at_all import x\n", ""),
            "a name that a module has not": (first + b"from nlhf_jax import nothing\n", ""),
            "it includes itself": (b'include "user.gin"\n', "includes itself"),
            "a file that is not there": (b'include "absent.gin"\n', "absent.gin"),
            "a path with a NUL": (b'include "a\\x00b"\n', ""),
            "a NUL byte": (b"A = 1\0\n", ""),
            "not UTF-8": (b"A = '\xff'\n", "not text"),
            "an open bracket": (b"A = [1,\n", "left open"),
            "an open quote": (b"A = 'x\n", ""),
            "brackets beyond all": (b"A = " + b"[" * 5000 + b"]" * 5000 + b"\n", ""),
            "no value": (b"A =\n", ""),
            "a call": (b"A = __import__('os').system('true')\n", ""),
            "a function that is none": (b"A = @os.system('true')\n", ""),
            "gzip": (GZIP, ""),
        },
    )  # fmt: skip
    # Two files that include each other.
    yield Case(
        "gin", "a circle", {"other.gin": b'include "user.gin"\n'}, REFUSED, "includes itself"
    )
