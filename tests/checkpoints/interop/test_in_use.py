"""Checkpoints of T5X and Hugging Face where a run takes one of ours, without converting."""

import dataclasses
import functools

import numpy as np
import pytest

from nlhf_jax import objectives, opponents
from nlhf_jax.checkpoints.arrays import flattened
from nlhf_jax.checkpoints.networks import load_network
from nlhf_jax.data.templates import rater_segments, reward_segments
from nlhf_jax.data.vocabularies import tldr_mini_vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import builders
from nlhf_jax.main import main
from nlhf_jax.models.t5 import stack_layers
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.checkpoints.interop.tiny_checkpoints import (
    LENGTHS,
    assert_equal,
    per_layer,
    write,
    write_ours,
)
from tests.paths import golden_directory

WORDS = tldr_mini_vocabulary()
FORMATS = ("nlhf", "t5x", "t5x_orbax", "huggingface")


def values(params) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in flattened(params).items()}


def as_frozen(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In bfloat16 what layers cast to the dtype of activations; in float32 what they do not."""
    whole = ("scale", "rel_embedding", "logits_dense/kernel")
    return {
        name: np.asarray(array, np.float32 if name.endswith(whole) else "bfloat16")
        for name, array in flat.items()
    }


def setup(mesh=(1, 1, 1)) -> builders.Setup:
    data = tiny_checkpoints.data()
    partitioner, optimizer = tiny.mesh(*mesh), tiny.optimizer()
    return builders.Setup(data, LENGTHS, partitioner, optimizer, seed=0, microbatches=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """format -> path; a policy with the parameters `tiny.params(model, 1)`."""

    @functools.cache
    def make(to: str):
        network = tiny_checkpoints.model()
        return write(tmp_path_factory.mktemp(to), to, network, tiny.params(network, 1))

    return make


# --- what a foreign checkpoint is taken for ------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "template", "labels"),
    [
        ("policy", None, None),
        ("preference", rater_segments(WORDS).segments, WORDS.rater_labels()),
        ("reward", reward_segments(WORDS).segments, None),
    ],
)
def test_a_checkpoint_of_t5x_is_what_the_run_needs_with_the_datas_template(kind, template, labels):
    path = golden_directory() / "t5x_tiny" / "native"
    network = load_network(
        str(path), tiny.one_device(), tiny_checkpoints.data(), kind=kind, feature_lengths=LENGTHS
    )
    assert network.kind == kind and network.feature_lengths == LENGTHS
    assert network.model.vocab_size == 384  # more rows than the vocabulary has pieces: padding
    if kind == "preference":
        rater = network.rater().description()
        assert rater == {"template": list(template), "labels": list(labels)}
    elif kind == "reward":
        assert network.rater().description() == {"template": list(template)}


def test_ours_is_what_it_says_of_itself(tmp_path):
    network = tiny_checkpoints.model()
    described = {
        "kind": "reward",
        "feature_lengths": tiny_checkpoints.RATER_LENGTHS,
        "rater_template": ((5,), "text", (6,), "first"),
    }
    write_ours(tmp_path, network, tiny.params(network, 1), **described)
    found = load_network(
        str(tmp_path), tiny.one_device(), tiny_checkpoints.data(), kind="preference"
    )
    assert found.kind == "reward"
    assert found.rater().template == described["rater_template"]


@pytest.mark.parametrize("to", ["t5x", "huggingface"])
def test_sampling_from_a_foreign_checkpoint_asks_for_convert(checkpoint, tmp_path, capsys, to):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("my boss steals food\n")
    capsys.readouterr()
    assert main(["sample", f"--checkpoint={checkpoint(to)}", f"--prompts={prompts}"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert str(checkpoint(to)) in said and "`nlhf convert` makes one that does" in said


# --- layouts and types ---------------------------------------------------------------------------


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("to", FORMATS)
def test_layers_are_stacked_as_the_run_has_them(checkpoint, to, scanned):
    params = tiny.params(tiny_checkpoints.model(), 1)
    network = load_network(
        str(checkpoint(to)), tiny.mesh(2, 2, 2), tiny_checkpoints.data(), scan_layers=scanned
    )
    assert network.model.config.scan_layers is scanned
    assert_equal(values(network.params), flattened(stack_layers(params) if scanned else params))


@pytest.mark.parametrize("scanned", [False, True])
def test_ours_keeps_its_runs_layout_unless_the_run_says_otherwise(tmp_path, scanned):
    writer = tiny_checkpoints.model(scan_layers=scanned, dtype="bfloat16")
    params = tiny.params(writer, 1)
    write_ours(tmp_path, writer, params)
    same = load_network(str(tmp_path), tiny.one_device())
    assert same.model.config == writer.config
    assert_equal(values(same.params), flattened(params))
    other = load_network(
        str(tmp_path), tiny.one_device(), scan_layers=not scanned, compute_dtype="float32"
    )
    assert other.model.config == dataclasses.replace(
        writer.config, scan_layers=not scanned, dtype="float32"
    )
    assert_equal(values(other.params), flattened(tiny.params(other.model, 1)))


@pytest.mark.parametrize("to", FORMATS)
def test_frozen_networks_can_be_stored_in_bfloat16_and_compute_in_it(checkpoint, to):
    network = load_network(
        str(checkpoint(to)),
        tiny.one_device(),
        tiny_checkpoints.data(),
        dtype="bfloat16",
        compute_dtype="bfloat16",
    )
    assert network.model.config.dtype == "bfloat16"
    stored = as_frozen(per_layer(tiny.params(tiny_checkpoints.model(), 1)))
    assert_equal(values(network.params), stored)


def test_a_foreign_checkpoint_computes_in_float32_unless_told_otherwise(checkpoint):
    path = str(checkpoint("t5x"))
    network = load_network(path, tiny.one_device(), tiny_checkpoints.data())
    assert network.model.config.dtype == "float32" and not network.model.config.scan_layers


# --- learners ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "to", "scanned", "mesh"),
    [
        (builders.supervised, "huggingface", False, (1, 1, 1)),
        (builders.preference, "t5x", True, (2, 2, 2)),
        (builders.reward, "nlhf", True, (1, 1, 1)),
    ],
)
def test_an_initial_checkpoint_is_where_training_starts(checkpoint, build, to, scanned, mesh):
    network = tiny_checkpoints.model(scan_layers=scanned, dtype="bfloat16")
    learner = build(setup(mesh), network.config, initial_checkpoint=str(checkpoint(to)))
    assert learner.model.config == network.config
    # Parameters that are trained are float32, whatever is computed in.
    assert_equal(values(learner.init().params), values(tiny.params(network, 1)))


def test_a_policy_with_a_rater_of_t5x_and_a_reference_of_hugging_face(checkpoint, tmp_path):
    rater_network = tiny_checkpoints.model(emb_dim=8, heads=2)
    rater_params = tiny.params(rater_network, 2)
    rater = write(tmp_path, "t5x", rater_network, rater_params)
    learner = builders.policy(
        setup(),
        initial_checkpoint=str(checkpoint("huggingface")),
        rater_checkpoint=str(rater),
        opponent=opponents.geometric_mixture(0.3),
        objective=objectives.policy_gradient(0.1, "sampled"),
        both_orders=True,
        frozen_dtype="bfloat16",
        compute_dtype=None,
        scan_layers=True,
    )

    def rounded(params):
        return as_frozen(flattened(stack_layers(params)))

    reference = tiny.params(tiny_checkpoints.model(), 1)
    frozen = [values(params) for params in learner._frozen.values()]
    assert len(frozen) == 2
    assert_equal(frozen[0], rounded(reference))
    assert_equal(frozen[1], rounded(rater_params))
    # The policy starts where the reference does, not where that one is stored.
    assert_equal(values(learner.init().params), flattened(stack_layers(reference)))
    assert_equal(values(learner._frozen["reference"]), rounded(reference))


def test_a_rater_of_the_wrong_kind_is_refused(checkpoint):
    """A checkpoint of ours says what it is, and a policy is no rater."""
    with pytest.raises(UserError, match="is a supervised model but this opponent needs a pref"):
        builders.policy(
            setup(),
            initial_checkpoint=str(checkpoint("huggingface")),
            rater_checkpoint=str(checkpoint("nlhf")),
            opponent=opponents.self_play(),
            objective=objectives.policy_gradient(0.1, "sampled"),
            both_orders=True,
            frozen_dtype="float32",
            compute_dtype=None,
            scan_layers=None,
        )
