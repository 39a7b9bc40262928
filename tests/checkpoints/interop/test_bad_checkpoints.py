"""Checkpoints that cannot be used: one sentence that names the parameter or the file, and why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from nlhf_jax.checkpoints.networks import read_params
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.errors import UserError
from nlhf_jax.main import main
from nlhf_jax.models import registry
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.paths import golden_directory

WI = "encoder/layers_0/mlp/wi_0/kernel"
WI_ZARR = f"target.{WI.replace('/', '.')}"
WI_THEIRS = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- T5X -----------------------------------------------------------------------------------------


def rewrite_zarr(directory: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Another array in the place of a Zarr array."""
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{directory}/"}}
    array = change(ts.open(spec).result().read().result())
    shutil.rmtree(directory)
    metadata = {"shape": array.shape, "chunks": array.shape}
    ts.open(spec | {"dtype": array.dtype.name, "metadata": metadata}, create=True).result().write(
        array
    ).result()


def without_layer(path: Path, layer: str) -> None:
    """Takes a layer out of the msgpack file, as if it had never been there."""
    import flax

    content = flax.serialization.msgpack_restore((path / "checkpoint").read_bytes())
    stack, _, name = layer.partition("/")
    del content["optimizer"]["target"][stack][name]
    (path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(content))


NATIVE = {
    "missing chunk": (
        lambda p: (p / WI_ZARR / "0.0").unlink(),
        f"the parameter {WI} cannot be read (its file {WI_ZARR}/0.0 is missing)",
    ),
    "cut chunk": (lambda p: cut(p / WI_ZARR / "0.0"), f"the parameter {WI} cannot be read ("),
    "empty chunk": (
        lambda p: (p / WI_ZARR / "0.0").write_bytes(b""),
        f"the parameter {WI} cannot be read (",
    ),
    "missing .zarray": (
        lambda p: (p / WI_ZARR / ".zarray").unlink(),
        f"the parameter {WI} cannot be read ({WI_ZARR}/.zarray is missing)",
    ),
    "missing array": (
        lambda p: shutil.rmtree(p / WI_ZARR),
        f"the parameter {WI} cannot be read ({WI_ZARR}/.zarray is missing)",
    ),
    "cut msgpack": (
        lambda p: cut(p / "checkpoint"),
        "checkpoint_7/checkpoint is not the msgpack file of a T5X checkpoint, or is cut",
    ),
    "other msgpack": (
        lambda p: (p / "checkpoint").write_bytes(b"\x81\xa1a\x01"),
        "checkpoint_7/checkpoint is not the msgpack file of a T5X checkpoint, or is cut",
    ),
    "wrong shape": (
        lambda p: rewrite_zarr(p / WI_ZARR.replace("layers_0", "layers_1"), lambda x: x[:, :-1]),
        "encoder/layers_1/mlp/wi_0/kernel has shape (12, 23) there and (12, 24) here",
    ),
    "wrong rank": (
        lambda p: rewrite_zarr(p / "target.token_embedder.embedding", lambda x: x[0]),
        "the parameter token_embedder/embedding has shape (12,), not 2 dimensions",
    ),
    "wrong dtype": (
        lambda p: rewrite_zarr(p / WI_ZARR, lambda x: x.astype(np.int8)),
        f"the parameter {WI} is of type int8 but parameters are float32, bfloat16 or float16",
    ),
    "missing layer": (
        lambda p: without_layer(p, "encoder/layers_0"),
        "has no parameters of encoder/layers_0",
    ),
    "missing part of a layer": (
        lambda p: without_layer(p, "decoder/decoder_norm"),
        "the parameter decoder/decoder_norm/scale (12,) is missing there",
    ),
    "no decoder": (
        lambda p: [without_layer(p, f"decoder/layers_{i}") for i in (0, 1)],
        "has no parameters of decoder/layers_0",
    ),
    "no embedding": (
        lambda p: without_layer(p, "token_embedder/embedding"),
        "is not of a T5: it has no parameter token_embedder/embedding",
    ),
}
ORBAX = {
    "missing chunk": (
        lambda p: (p / "state" / WI_ZARR / "0.0").unlink(),
        f"the parameter {WI} cannot be read (its file {WI_ZARR}/0.0 is missing)",
    ),
    "cut chunk": (
        lambda p: cut(p / "state" / WI_ZARR / "0.0"),
        f"the parameter {WI} cannot be read (",
    ),
    "missing .zarray": (
        lambda p: (p / "state" / WI_ZARR / ".zarray").unlink(),
        f"the parameter {WI} cannot be read ({WI_ZARR}/.zarray is missing)",
    ),
    "no target": (
        lambda p: [shutil.rmtree(d) for d in (p / "state").glob("target.*")],
        "is an Orbax checkpoint but not of T5X",
    ),
    "no step": (lambda p: shutil.rmtree(p / "state" / "state.step"), "has no state.step"),
}


# --- Hugging Face --------------------------------------------------------------------------------


def configure(path: Path, **changes) -> None:
    """Changes settings of config.json; None takes one out."""
    config = json.loads((path / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))


def index(path: Path, change: Callable[[dict], None]) -> None:
    file = path / "model.safetensors.index.json"
    content = json.loads(file.read_text())
    change(content["weight_map"])
    file.write_text(json.dumps(content))


def edit_header(directory: Path, name: str, **changes) -> None:
    """Changes what the header of the safetensors file with one array says of it."""
    places = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    path = directory / places[name]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[name] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


LAST = "model-00003-of-00003.safetensors"
HUGGING_FACE = {
    "missing shard": (lambda p: (p / LAST).unlink(), f"{LAST} is missing, which has the parameter"),
    "cut shard": (lambda p: cut(p / LAST), f"the checkpoint {{path}} is damaged: {LAST} has"),
    "empty shard": (lambda p: (p / LAST).write_bytes(b""), f"{LAST} is cut: it has 0 bytes"),
    "shard of something else": (
        lambda p: (p / LAST).write_bytes(b"PK\x03\x04" * 9),
        f"{LAST} is cut or not a safetensors file",
    ),
    "index names what is not there": (
        lambda p: index(p, lambda m: m.update({WI_THEIRS: LAST})),
        f"the parameter {WI_THEIRS} is not in {LAST}, where model.safetensors.index.json has it",
    ),
    "index lacks a parameter": (
        lambda p: index(p, lambda m: m.pop(WI_THEIRS)),
        f"the parameter {WI_THEIRS} is missing",
    ),
    "cut index": (
        lambda p: cut(p / "model.safetensors.index.json"),
        "model.safetensors.index.json is missing or no whole JSON",
    ),
    "no weights": (
        lambda p: [f.unlink() for f in p.glob("model*")],
        "has config.json but neither model.safetensors nor model.safetensors.index.json",
    ),
    "cut config": (lambda p: cut(p / "config.json"), "config.json is missing or no whole JSON"),
    "decoder-only": (
        lambda p: configure(p, model_type="llama"),
        "config.json: model_type is 'llama' but must be 't5'",
    ),
    "BERT": (
        lambda p: configure(p, model_type="bert"),
        "config.json: model_type is 'bert' but must be 't5'",
    ),
    "another norm": (
        lambda p: configure(p, layer_norm_epsilon=1e-5),
        "config.json: layer_norm_epsilon is 1e-05 but must be 1e-06",
    ),
    "another start": (
        lambda p: configure(p, decoder_start_token_id=2),
        "config.json: decoder_start_token_id is 2 but must be 0",
    ),
    "another activation": (
        lambda p: configure(p, feed_forward_proj="gelu"),
        "config.json: feed_forward_proj is 'gelu' but must be",
    ),
    "no width": (lambda p: configure(p, d_model=None), "config.json has no 'd_model'"),
    "more layers in the config": (
        lambda p: configure(p, num_layers=3),
        "the parameter encoder.block.2.layer.0.layer_norm.weight is missing",
    ),
    "fewer layers in the config": (
        lambda p: configure(p, num_decoder_layers=1),
        "the parameter decoder.block.1.layer.0.SelfAttention.k.weight is not of that model",
    ),
    "ungated in the config": (
        lambda p: configure(p, feed_forward_proj="relu"),
        "the parameter encoder.block.0.layer.1.DenseReluDense.wi.weight is missing",
    ),
    "wider in the config": (
        lambda p: configure(p, d_ff=32),
        "wi_0/kernel has shape (12, 24) there and (12, 32) here",
    ),
    "more words in the config": (
        lambda p: configure(p, vocab_size=300),
        "the parameter decoder/logits_dense/kernel has shape (12, {rows}) there and (12, 300) here",
    ),
    "tied in the config": (
        lambda p: configure(p, tie_word_embeddings=True),
        "config.json: the embedding is not the output layer too and its output is scaled",
    ),
    "integers": (
        lambda p: edit_header(p, "shared.weight", dtype="I32"),
        "the parameter token_embedder/embedding is of type int32 but parameters are",
    ),
    "a type that safetensors has and we have not": (
        lambda p: edit_header(p, "shared.weight", dtype="F8_E4M3"),
        "has a header that cannot be read: shared.weight is of type F8_E4M3",
    ),
    "wrong shape": (
        lambda p: edit_header(p, WI_THEIRS, shape=[12, 24]),
        "wi_0/kernel has shape (24, 12) there and (12, 24) here",
    ),
    "shape of another size": (
        lambda p: edit_header(p, WI_THEIRS, shape=[24, 11]),
        f"has a header that cannot be read: {WI_THEIRS} [24, 11] does not have 1152 bytes",
    ),
}


def test_hugging_faces_third_file_is_not_where_the_table_has_its_parameter(checkpoints):
    places = json.loads((checkpoints["huggingface"] / "model.safetensors.index.json").read_text())
    assert places["weight_map"][WI_THEIRS] != LAST
    assert LAST in places["weight_map"].values()


# --- all of them ---------------------------------------------------------------------------------


def load(path: Path) -> None:
    found = open_checkpoint(str(path))
    read_params(found, registry.build(found.model), tiny.one_device(), "float32")


@pytest.mark.parametrize("to", ["t5x", "t5x_orbax", "huggingface"])
def test_undamaged_they_are_read(checkpoints, to):
    load(checkpoints[to])


CASES = {
    f"{to}: {name}": (to, *case)
    for to, table in (("t5x", NATIVE), ("t5x_orbax", ORBAX), ("huggingface", HUGGING_FACE))
    for name, case in table.items()
}


@pytest.mark.parametrize(("to", "damage", "said"), CASES.values(), ids=CASES)
def test_what_is_wrong_is_one_sentence_that_names_it(checkpoints, tmp_path, to, damage, said):
    path = tmp_path / checkpoints[to].name
    shutil.copytree(checkpoints[to], path)
    damage(path)
    with pytest.raises(UserError) as error:
        load(path)
    message = str(error.value)
    assert said.format(path=path, rows=tiny_checkpoints.WORDS.size) in message
    assert str(path) in message and "\n" not in message


@pytest.mark.parametrize("to", ["t5x", "huggingface"])
def test_on_the_command_line_it_is_exit_code_2(checkpoints, tmp_path, capsys, to):
    path = tmp_path / checkpoints[to].name
    shutil.copytree(checkpoints[to], path)
    cut(path / WI_ZARR / "0.0" if to == "t5x" else path / LAST)
    arguments = [f"--checkpoint={path}", f"--output={tmp_path / 'out'}", "--to=huggingface"]
    capsys.readouterr()
    assert main(["convert", *arguments]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"nlhf: error: the checkpoint {path} is damaged")
    assert (WI if to == "t5x" else LAST) in said
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_at_all(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="holds no checkpoint"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a checkpoint"):
        open_checkpoint(str(tmp_path / "file"))


# --- OCDBT, as T5X's own Orbax checkpoints are ---------------------------------------------------


def ocdbt_files() -> list[str]:
    directory = golden_directory() / "t5x_tiny" / "orbax" / "checkpoint_3" / "state"
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [str(p.relative_to(directory)) for p in files if "/d/" in str(p) or "manifest" in p.name]


@pytest.mark.parametrize("damage", [cut, Path.unlink], ids=["cut", "missing"])
def test_an_ocdbt_file_that_is_damaged_is_an_error_or_not_needed(tmp_path, damage):
    """All data files and manifests in turn: never other numbers, a hang or another exception."""
    source = golden_directory() / "t5x_tiny" / "orbax" / "checkpoint_3"
    whole = tiny_checkpoints.read(source)
    refused = set()
    for number, name in enumerate(sorted(ocdbt_files())):
        path = tmp_path / str(number) / "checkpoint_3"
        shutil.copytree(source, path, copy_function=shutil.copyfile)
        damage(path / "state" / name)
        try:
            tiny_checkpoints.assert_equal(tiny_checkpoints.read(path), whole)
        except UserError as error:
            refused.add(name)
            assert str(path) in str(error) and "\n" not in str(error)
    # The manifest, the index that it names, and the file with the arrays: others are Adafactor's.
    assert "manifest.ocdbt" in refused and len(refused) >= 3
