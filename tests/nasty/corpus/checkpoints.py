"""Bad checkpoints, ours and of other formats."""

import base64
import json
import struct
from collections.abc import Iterator

import msgpack

from tests.nasty.corpus.case import Case, one
from tests.nasty.readers import READERS, REFUSED


def cases() -> Iterator[Case]:
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
        yield from one(reader.name, REFUSED, {f"description: {name}": content})
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
    yield from one(
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
