"""Bad files of a run that is reported."""

import json
from collections.abc import Iterator

from tests.nasty.corpus.case import Case, one
from tests.nasty.readers import ACCEPTED, READERS, REFUSED


def cases() -> Iterator[Case]:
    reader = READERS["tournament.json"]
    good = json.loads(reader.good()[reader.main_file])
    rates = good["win_rates"]
    half = "\ud83d"
    players = good["players"]
    triples = good["intransitivity"] | {"policy_cycles": [["x", "y", "z"]]}
    yield from one(
        reader.name,
        REFUSED,
        {
            "empty": b"",
            "a list": b"[]",
            "nested deeply": b"[" * 100_000,
            **{
                name: json.dumps(good | changes).encode()
                for name, changes in {
                    "too few rates": {"win_rates": rates | {"rate": [[0.5]]}},
                    "rates that are NaN": {"win_rates": rates | {"low": [[float("nan")] * 5] * 5}},
                    "rates beyond one": {"win_rates": rates | {"rate": [[7.0] * 5] * 5}},
                    "two players of one name": {"win_rates": rates | {"names": ["a"] * 5}},
                    "players of others": {"players": players[:-1]},
                    "a name that is a number": {"players": [players[0] | {"name": 3}]},
                    "a judge with half a surrogate pair": {"judge": half},
                    "prompts without end": {"prompts": 10**400},
                    "prompts of infinity": {"prompts": float("inf")},
                    "a KL that is a text": {"players": [players[0] | {"kl": "<b>"}, *players[1:]]},
                    "samples of numbers": {"samples": [3]},
                    "a cycle of strangers": {"intransitivity": triples},
                }.items()
            },
        },
    )  # fmt: skip
    good_data = b'{"step": 0, "split": "data", "examples": 4}\n'
    step = b'{"step": 1, "split": "train", "loss": 1.5}\n'
    yield from one(
        "metrics.jsonl",
        ACCEPTED,
        {
            "empty": b"",
            "NaN and infinity": b'{"step": 0, "split": "data", "a": NaN, "x": 1e999}\n' + step,
            "a number of 400 digits": b'{"step": 1, "split": "data", "x": 1%s}\n' % (b"0" * 400),
            "HTML for names": b'{"step": 1, "split": "train", "<b onclick=x>": 1.5, "a|b": 2}\n',
            "half a surrogate pair": b'{"step": 1, "split": "train", "\\ud83d": 1.5}\n',
            "its last line cut": good_data + step[:20],
            "not UTF-8 in a name": b'{"step": 1, "split": "train", "\xff": 1.5}\n',
        },
    )  # fmt: skip
    yield from one(
        "metrics.jsonl",
        REFUSED,
        {
            "a step of infinity": b'{"step": 1e999, "split": "train"}\n' + step,
            "a step that is a text": b'{"step": "1", "split": "train"}\n' + step,
            "a line nested deeply": b"[" * 100_000 + b"\n" + step,
            "half a guard's line": b'{"step": 1, "split": "guards", "skipped": 1}\n' + step,
            "a line of garbage": b"\xff\xfe\n" + step,
        },
    )
    for name, content in {
        "empty": b"",
        "a list": b"[]",
        "NaN": b'{"seconds": NaN}',
        "infinity": b'{"started": 1e999, "steps": 1e999}',
        "a text": b'{"seconds": "soon"}',
        "nested deeply": b"[" * 100_000,
    }.items():
        yield Case("metrics.jsonl", f"timing {name}", {"sft/timing.json": content}, REFUSED)
    finding = {"name": "one", "title": "T", "text": "x", "numbers": {}, "table": []}
    for name, changes in {
        "a path upwards": {"name": "../../x"},
        "an absolute path": {"name": "/etc/passwd"},
        "a NUL": {"name": "a\0"},
        "a very long name": {"name": "a" * 5000},
        "a title that is a list": {"title": ["<b>"]},
        "numbers that are NaN": {"numbers": {"a": float("nan")}},
        "rows of many lengths": {"table": [["a"], ["a", "b"]]},
        "another field": {"x": 1},
        "half a surrogate pair": {"text": half},
    }.items():
        content = json.dumps({"findings": [finding | changes]}).encode()
        yield Case("metrics.jsonl", f"findings: {name}", {"sft/findings.json": content}, REFUSED)
    yield from one(
        "stage.json",
        REFUSED,
        {
            "empty": b"",
            "a list": b"[]",
            "no configuration": b'{"job": "train"}',
            "a configuration that is a list": b'{"job": "train", "fingerprint": "f", "config": []}',
            "a time below 0": b'{"job": "a", "fingerprint": "", "config": "", "seconds": -1}',
            "seconds of NaN": b'{"job": "a", "fingerprint": "f", "config": "", "seconds": NaN}',
            "nested deeply": b"[" * 100_000,
            "not UTF-8": b"\xff",
        },
    )  # fmt: skip
