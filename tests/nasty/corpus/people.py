"""Bad answers of people, and bad keys of the sheets that they answered."""

import json
from collections.abc import Iterator

from tests.nasty.corpus.case import Case, one
from tests.nasty.readers import ACCEPTED, READERS, REFUSED


def _good(reader: str) -> dict:
    found = READERS[reader]
    return json.loads(found.good()[found.main_file])


def cases() -> Iterator[Case]:
    yield from one(
        "responses",
        REFUSED,
        {
            "no lines": b"",
            "a number for a text": (b'{"prompt": "my food", "completion": 3}\n', "line 1"),
            "other bytes than UTF-8": (b"\xff\xfe\n", "line 1"),
        },
    )
    yield from one("responses", ACCEPTED, {"a hostile text": _hostile()})
    answers = _good("answers, JSON")
    given = answers["answers"]
    changed = {
        "another sheet": {"sheet": "x"},
        "an item that is none": {"answers": [{"id": "x", "answer": "1"}]},
        "an answer that is none": {"answers": [given[0] | {"answer": "3"}]},
        "two answers to one": {"answers": given * 2},
        "a rater who is a list": {"rater": []},
    }
    broken = {name: json.dumps(answers | changes).encode() for name, changes in changed.items()}
    yield from one(
        "answers, JSON", REFUSED, broken | {"cut short": json.dumps(answers)[:40].encode()}
    )
    item = given[0]["id"]
    yield from one(
        "answers, CSV",
        REFUSED,
        {
            "no header": f"{item},1\n".encode(),
            "an answer that is none": (f"id,answer\n{item},3\n".encode(), "line 2"),
            "an item that is none": (b"id,answer\nx,1\n", "line 2"),
            "NUL bytes": f"id,answer\n{item},\0\n".encode(),
        },
    )
    key = _good("sheet.key.json")
    yield from one(
        "sheet.key.json",
        REFUSED,
        {
            "empty": b"",
            "a list": b"[]",
            "nested deeply": b"[" * 100_000,
            **{f"without {name}": _without(key, name) for name in key},
        },
    )


def _hostile() -> bytes:
    row = {"prompt": "my food", "completion": "</script><script>alert(1)</script> =1+1"}
    return json.dumps(row).encode() + b"\n"


def _without(tree: dict, name: str) -> bytes:
    return json.dumps({key: value for key, value in tree.items() if key != name}).encode()
