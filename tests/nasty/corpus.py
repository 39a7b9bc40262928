"""Hand-made bad inputs: (reader, name) -> the files, and what must come of them.

`REFUSED` says that the sentence must hold some words; `ACCEPTED` that nothing may be lost.
"""

import base64
import dataclasses
import json
import struct
from collections.abc import Iterator

import msgpack

from tests.data import tldr_rows
from tests.nasty.readers import ACCEPTED, READERS, REFUSED, ROWS, TLDR, Files, lines


@dataclasses.dataclass(frozen=True)
class Case:
    """`words` are in the sentence of a refusal; `None` in `files` takes a good file away."""

    reader: str
    name: str
    files: dict[str, bytes | None]
    wanted: str
    words: str = ""

    def all_files(self) -> Files:
        found = {**READERS[self.reader].good(), **self.files}
        return {name: content for name, content in found.items() if content is not None}


def cases() -> list[Case]:
    return [
        *_lines(),
        *_prompts(),
        *_tldr(),
        *_vocabularies(),
        *_gin(),
        *_checkpoints(),
        *_reports(),
    ]


def _one(reader: str, wanted: str, table: dict[str, tuple[bytes, str] | bytes]) -> Iterator[Case]:
    """Cases of a reader's main file."""
    for name, entry in table.items():
        content, words = entry if isinstance(entry, tuple) else (entry, "")
        yield Case(reader, name, {READERS[reader].main_file: content}, wanted, words)


def _row(**changes: object) -> bytes:
    return lines(ROWS["sft"] | changes)


GOOD = lines(ROWS["sft"])
BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b\x08\x00" + bytes(range(64))


def _lines() -> Iterator[Case]:
    yield from _one(
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
    yield from _one(
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
    yield from _one(
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
    yield from _one("lines of prompts", REFUSED, {"no prompt": (b'{"text": "a"}\n', "missing")})
    yield from _one(
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
    yield from _one(
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
    yield from _one(
        "prompts, text",
        REFUSED,
        {
            "empty": (b"", "holds no prompt"),
            "gzip": (GZIP, "not UTF-8"),
            "half JSON": (b'{"prompt": "a"\n', "not valid JSON"),
        },
    )
    yield from _one(
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
    yield from _one(
        "prompts, of a form",
        ACCEPTED,
        {
            "braces and the form inside a field": lines(
                {"subreddit": "{post}", "title": "{0.__class__}", "post": TLDR.form}
            )
        },
    )


def _tldr() -> Iterator[Case]:
    yield from _one(
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
    yield from _one(
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
    yield from _one(
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
    yield from _one(
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


def _checkpoints() -> Iterator[Case]:
    yield from _ours()
    yield from _theirs()


def _ours() -> Iterator[Case]:
    sealed = READERS["checkpoint: nlhf, sealed"]
    sums = json.loads(sealed.good()[sealed.main_file])
    for name, content in {
        "empty": b"",
        "a list": b"[]",
        "nested deeply": b"[" * 100_000,
        "of other files": json.dumps({"../../x": [1, "0"], "/etc/passwd": [1, "0"]}).encode(),
        "of a NUL": json.dumps(sums | {"a\0b": [1, "0"]}).encode(),
        "of sizes that are texts": json.dumps(dict.fromkeys(sums, ["x", "0"])).encode(),
    }.items():
        yield Case(sealed.name, f"checksums {name}", {sealed.main_file: content}, REFUSED)
    reader = READERS["checkpoint: nlhf"]
    good = json.loads(reader.good()[reader.main_file])
    pickled = base64.b64encode(b"cos\nsystem\n(S'true'\ntR.").decode()
    changes = {
        "empty": b"",
        "not JSON": b"{",
        "a list": b"[]",
        "nested deeply": b"[" * 100_000,
        "a model of no family": good | {"model": good["model"] | {"family": "os.system"}},
        "a family that is a list": good | {"model": good["model"] | {"family": ["t5"]}},
        "a module to import": good | {"model": {"family": "x", "module": "nasty_module"}},
        "a model that is a text": good | {"model": "t5"},
        "a step that is a text": good | {"step": "../../x"},
        "metrics of texts": good | {"metrics": {"loss": "x"}},
        "lengths of texts": good | {"feature_lengths": {"inputs": "x"}},
        "a size that is a text": good | {"model": good["model"] | {"emb_dim": "12"}},
        "a setting that no model has": good | {"model": good["model"] | {"x": 1}},
        "a vocabulary that is a pickle": good | {"vocabulary": {"sha256": "0", "base64": pickled}},
        "a vocabulary that is null": good | {"vocabulary": None},
        "a form that is none": good | {"prompt_form": "{a.__class__}"},
        "a form that is a number": good | {"prompt_form": 3},
    }
    for name, content in changes.items():
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        yield from _one(reader.name, REFUSED, {f"description: {name}": content})
    files = reader.good()
    for name in files:
        short = name.rpartition("state/")[2]
        if short in ("_METADATA", "manifest.ocdbt"):
            yield Case(reader.name, f"{short} missing", {name: None}, REFUSED)
            yield Case(reader.name, f"{short} of garbage", {name: b"\xff\0" * 40}, REFUSED)
            yield Case(reader.name, f"{short} cut", {name: files[name][:20]}, REFUSED)


def _theirs() -> Iterator[Case]:
    native = READERS["checkpoint: t5x"]
    array = next(name for name in native.good() if name.endswith("/.zarray"))
    yield from _one(
        native.name,
        REFUSED,
        {
            "empty": b"",
            "a pickle": b"cos\nsystem\n(S'true'\ntR.",
            "msgpack nested beyond all": b"\x91" * 100_000,
            "msgpack of an array longer than memory": b"\xdd\xff\xff\xff\xff" * 200,
            "msgpack of a text longer than memory": b"\xdb\xff\xff\xff\xffabc",
            "msgpack of a map of another kind": msgpack.packb({"optimizer": {"target": 3}}),
            "an array of objects": msgpack.packb(
                {
                    "version": 3,
                    "optimizer": {
                        "target": {
                            "x": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678")))
                        },
                        "state": {"step": 1},
                    },
                }
            ),
            "an array that is elsewhere": msgpack.packb(
                {
                    "version": 3,
                    "optimizer": {
                        "target": {
                            "x": {"driver": "zarr", "kvstore": {"path": "../.."}, "metadata": {}}
                        },
                        "state": {"step": 1},
                    },
                }
            ),
        },
    )
    shape = json.loads(native.good()[array])
    for name, content in {
        "of garbage": b"\xff" * 60,
        "with a huge shape": json.dumps(shape | {"shape": [1 << 40, 1 << 20]}).encode(),
        "with a negative shape": json.dumps(shape | {"shape": [-1] * len(shape["shape"])}).encode(),
        "of objects": json.dumps(shape | {"dtype": "|O"}).encode(),
        "with a pickle's filter": json.dumps(shape | {"filters": [{"id": "pickle"}]}).encode(),
        "nested deeply": b"[" * 100_000,
    }.items():  # fmt: skip
        yield Case(native.name, f"an array's description {name}", {array: content}, REFUSED)
    orbax = READERS["checkpoint: t5x_orbax"]
    some = next(name for name in orbax.good() if name.endswith("/.zarray") and "target." in name)
    yield Case(orbax.name, "an array's description missing", {some: None}, REFUSED)
    yield from _hugging_face()


def _hugging_face() -> Iterator[Case]:
    reader = READERS["checkpoint: huggingface"]
    config, weights = "config.json", "model.safetensors"
    good = json.loads(reader.good()[config])
    for name, content in {
        "empty": b"",
        "a list": b"[]",
        "nested deeply": b"[" * 100_000,
        "not UTF-8": b"\xff\xfe{}",
        "of another model": good | {"model_type": "llama"},
        "a size as text": good | {"d_model": "12"},
        "a negative size": good | {"num_layers": -1},
        "layers without end": good | {"num_layers": 10**12},
        "a size of infinity": good | {"vocab_size": float("inf")},
        "an activation that is a list": good | {"feed_forward_proj": ["relu"]},
    }.items():  # fmt: skip
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        yield Case(reader.name, f"{config} {name}", {config: content}, REFUSED)
    data = reader.good()[weights]
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")

    def with_header(changed) -> bytes:
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    def entry(**changes) -> bytes:
        return with_header(header | {first: header[first] | changes})

    begin, end = header[first]["data_offsets"]
    for name, content in {
        "empty": b"",
        "cut": data[:-9],
        "a header longer than the file": struct.pack("<Q", 1 << 40) + data[8:],
        "a header of 2**64 - 1": b"\xff" * 8 + data[8:],
        "a header that is a list": with_header(b"[]"),
        "a header nested deeply": with_header(b"[" * 100_000),
        "a header without arrays": with_header({"__metadata__": {}}),
        "negative places": entry(data_offsets=[begin - 8, end - 8] if begin == 0 else [-8, 0]),
        "overlapping places": with_header(
            header | {"x": {"dtype": "F32", "shape": [2], "data_offsets": [begin, begin + 8]}}
        ),
        "places beyond the file": entry(data_offsets=[1 << 50, (1 << 50) + end - begin]),
        "places the wrong way round": entry(data_offsets=[end, begin]),
        "places that are texts": entry(data_offsets=["0", "8"]),
        "a negative shape": entry(shape=[-1, -(end - begin) // 4]),
        "a shape of fractions": entry(shape=[0.5, (end - begin) / 2]),
        "a type that is none": entry(dtype="object"),
        "a type that is a list": entry(dtype=["F32"]),
        "a pickle": b"cos\nsystem\n(S'true'\ntR." + b"\0" * 99,
    }.items():
        yield Case(reader.name, f"{weights} {name}", {weights: content}, REFUSED)
    index = "model.safetensors.index.json"
    for name, place in {
        "a path upwards": "../../etc/passwd",
        "an absolute path": "/etc/passwd",
        "a NUL": "a\0b",
        "a very long name": "a" * 5000,
        "a number": 3,
        "a list": ["model.safetensors"],
        "nothing": "",
    }.items():
        content = json.dumps({"weight_map": {first: place}}).encode()
        yield Case(reader.name, f"an index that names {name}", {index: content}, REFUSED)


def _reports() -> Iterator[Case]:
    reader = READERS["tournament.json"]
    good = json.loads(reader.good()[reader.main_file])
    rates = good["win_rates"]
    half = "\ud83d"
    players = good["players"]
    triples = good["intransitivity"] | {"policy_cycles": [["x", "y", "z"]]}
    yield from _one(
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
    yield from _one(
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
    yield from _one(
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
    yield from _one(
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
