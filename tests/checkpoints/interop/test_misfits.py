"""Checkpoints that are whole, and not for this run: of another vocabulary, size or kind of T5."""

import dataclasses
import shutil

import pytest

from nlhf_jax.checkpoints.networks import load_network
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import builders
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints


def test_an_embedding_with_fewer_rows_than_the_vocabulary_has_pieces(tmp_path):
    pieces = tiny_checkpoints.WORDS.size
    small = tiny.model(pieces - 1, emb_dim=12, heads=4, layers=2)
    # No vocabulary lies beside the step's directory, so the data's is taken.
    path = tmp_path / "checkpoint_7"
    path.mkdir()
    tiny_checkpoints.write_native(path, tiny.params(small, 1))
    said = f"has {pieces - 1} rows in token_embedder/embedding but the vocabulary has {pieces}"
    with pytest.raises(UserError, match=said):
        load_network(str(path), tiny.one_device(), tiny_checkpoints.data())
    words = tmp_path / "words.model"
    words.write_bytes(tiny_checkpoints.WORDS.model_bytes)
    for to in ("nlhf", "huggingface"):
        with pytest.raises(UserError, match=said):
            tiny_checkpoints.convert(
                str(path),
                str(tmp_path / "out"),
                to,
                vocabulary=str(words),
                feature_lengths=tiny_checkpoints.LENGTHS,
            )
    assert not (tmp_path / "out").exists()


def setup() -> builders.Setup:
    data = tiny_checkpoints.data()
    mesh, optimizer = tiny.one_device(), tiny.optimizer()
    return builders.Setup(data, tiny_checkpoints.LENGTHS, mesh, optimizer, seed=0, microbatches=1)


@pytest.mark.parametrize("to", ["t5x", "huggingface"])
def test_an_initial_checkpoint_with_other_rows_than_the_model(checkpoints, to):
    rows = tiny_checkpoints.WORDS.size
    config = dataclasses.replace(tiny_checkpoints.model().config, vocab_size=rows + 2)
    with pytest.raises(UserError) as error:
        builders.supervised(setup(), config, initial_checkpoint=str(checkpoints[to]))
    wanted = f"the parameter decoder/logits_dense/kernel has shape (12, {rows}) there and (12, "
    assert wanted + f"{rows + 2}) here (and 1 more differ)" in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value", "stored"),
    [
        ("relative_attention_max_distance", 64, 128),
        ("mlp_activations", ("silu", "linear"), ("gelu", "linear")),
    ],
)
def test_an_initial_checkpoint_that_differs_in_what_no_shape_tells(
    checkpoints, setting, value, stored
):
    config = dataclasses.replace(tiny_checkpoints.model().config, **{setting: value})
    with pytest.raises(UserError) as error:
        builders.supervised(setup(), config, initial_checkpoint=str(checkpoints["huggingface"]))
    said = f"has {setting}={stored} but the model of this run has {setting}={value}"
    assert said in str(error.value)


def test_a_checkpoint_with_another_vocabulary_beside_it(checkpoints, tmp_path):
    path = tmp_path / "hf"
    shutil.copytree(checkpoints["huggingface"], path)
    other = tiny_checkpoints.other_vocabulary(tmp_path / "other.model")
    (path / "spiece.model").write_bytes(other)
    with pytest.raises(UserError, match="is not the one that the checkpoint"):
        load_network(str(path), tiny.one_device(), tiny_checkpoints.data())
