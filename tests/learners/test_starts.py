"""Where training starts: at whole float32 parameters, read once, and held once."""

import dataclasses
import gc

import jax
import numpy as np
import pytest

from nlhf_jax import objectives, opponents
from nlhf_jax.checkpoints import arrays, networks
from nlhf_jax.checkpoints.arrays import flattened
from nlhf_jax.checkpoints.networks import load_network
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import builders
from nlhf_jax.train import training_loop
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.checkpoints.interop.tiny_checkpoints import LENGTHS, assert_equal, write_ours
from tests.tiny_learner import DESCRIPTION

RATER = {"kind": "preference", "feature_lengths": {"text": 12, "summary": 5}}
SIZES = {"emb_dim": 24, "dtype": "bfloat16"}
SCANNED = tiny_checkpoints.model(**SIZES, scan_layers=True)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The SFT policy and the rater, as their trainings leave them."""
    place, network = tmp_path_factory.mktemp("stages"), tiny_checkpoints.model(**SIZES)
    data = tiny_checkpoints.data()
    write_ours(place / "sft", network, tiny.params(network, 1))
    described = {
        "rater_template": data.rater.segments,
        "rater_labels": data.vocabulary.rater_labels(),
    }
    write_ours(place / "rater", network, tiny.params(network, 2, scale=20.0), **RATER, **described)
    return place


def setup(lengths=LENGTHS) -> builders.Setup:
    mesh, optimizer = tiny.one_device(), tiny.optimizer()
    return builders.Setup(tiny_checkpoints.data(), lengths, mesh, optimizer, 0, microbatches=1)


def policy(stages, frozen_dtype="bfloat16", lengths=LENGTHS, **settings):
    settings = {"scan_layers": True, "compute_dtype": "bfloat16"} | settings
    return builders.policy(
        setup(lengths),
        initial_checkpoint=str(stages / "sft"),
        rater_checkpoint=str(stages / "rater"),
        opponent=opponents.geometric_mixture(0.3),
        objective=objectives.policy_gradient(0.1, "exact"),
        both_orders=False,
        frozen_dtype=frozen_dtype,
        **settings,
    )


def supervised(stages):
    return builders.supervised(setup(), SCANNED.config, initial_checkpoint=str(stages / "sft"))


def batch(learner, index=0):
    rng = np.random.default_rng(index)
    rows = {name: tiny.texts(rng, 8, length) for name, length in LENGTHS.items()}
    rows = rows if learner.kind == "supervised" else {"inputs": rows["inputs"]}
    return learner.partitioner.place_batch(rows | {"valid": np.ones(8, np.float32)})


def values(params):
    return {name: np.asarray(array) for name, array in flattened(params).items()}


SFT = flattened(tiny.params(SCANNED, 1))  # what the checkpoint `sft` holds, stacked


# --- numbers -------------------------------------------------------------------------------------


def test_a_policy_starts_at_sft_in_float32_and_not_at_the_rounded_reference(stages):
    learner = policy(stages)
    assert_equal(values(learner.init().params), SFT)
    reference = learner._frozen["reference"]
    kernel = reference["decoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert kernel.dtype == "bfloat16"
    wanted = SFT["decoder/layers/mlp/wo/kernel"].astype(kernel.dtype)
    np.testing.assert_array_equal(kernel, wanted)


def test_small_updates_show_in_what_the_network_computes_with(stages):
    """A part in 3,000 of an array's size: on the grid of bfloat16 nearly all of it would vanish.

    What the layers see of an update is its projection on itself, 1 in float32. Rounding loses no
    part of it on average if the parameters lie anywhere between the numbers of bfloat16.
    """

    def seen(params) -> float:
        rng, along, total = np.random.default_rng(0), 0.0, 0.0
        for name, array in params.items():
            if not name.endswith("/kernel") or "logits_dense" in name:
                continue  # computed with in float32
            update = 3e-4 * np.sqrt(np.mean(array**2)) * rng.choice([-1.0, 1.0], array.shape)
            update = update.astype(np.float32)
            before, after = (x.astype("bfloat16").astype(float) for x in (array, array + update))
            along, total = along + np.sum((after - before) * update), total + np.sum(update**2)
        return along / total

    found = seen(values(policy(stages).init().params))
    assert found == seen(SFT)
    assert 0.9 < found < 1.1
    on_grid = {name: array.astype("bfloat16").astype(np.float32) for name, array in SFT.items()}
    assert seen(on_grid) < 0.2


@pytest.mark.parametrize("frozen_dtype", ["float32", "bfloat16"])
def test_training_s_reference_is_the_tournament_s(stages, frozen_dtype):
    """The tournament reads it in float32. Stored as activations are, it gives the same logits."""
    learner = policy(stages, frozen_dtype)
    other = load_network(
        str(stages / "sft"), tiny.one_device(), compute_dtype="bfloat16", scan_layers=True
    )
    rows = batch(learner)["inputs"]

    @jax.jit
    def logits(params):
        return learner.model.logits(params, learner.model.encode(params, rows), rows)

    learner.init()
    np.testing.assert_array_equal(logits(learner._frozen["reference"]), logits(other.params))
    assert learner.model.config == other.model.config


def test_before_its_first_update_a_policy_is_its_reference(stages):
    learner = policy(stages)
    found = learner.eval_step(learner.init(), batch(learner))
    assert found["kl"] == 0.0 and found["log_ratio"] == 0.0 and found["entropy"] > 1.0


# --- settings ------------------------------------------------------------------------------------


def test_a_policy_needs_to_know_how_long_its_responses_may_be(stages):
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS has no 'targets'"):
        policy(stages, lengths={"inputs": 12})
    with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS\['targets'\] is 1; wanted"):
        policy(stages, lengths={"inputs": 12, "targets": 1})


@pytest.mark.parametrize(
    ("longer", "said"),
    [
        ({"inputs": 13}, "its 'text' is 12 but TASK_FEATURE_LENGTHS['inputs'] is 13"),
        ({"targets": 6}, "its 'summary' is 5 but TASK_FEATURE_LENGTHS['targets'] is 6"),
        ({}, None),
    ],
)
def test_a_rater_of_shorter_texts_than_the_policy_s_is_spoken_of(stages, capsys, longer, said):
    policy(stages, lengths=LENGTHS | longer)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == (said is not None)
    if said is not None:
        assert warnings[0].startswith("nlhf: warning: RATER_CHECKPOINT ") and said in warnings[0]


@pytest.mark.parametrize("scan_layers", [True, None])
def test_rematerialisation_changes_nothing_else_of_the_network(stages, scan_layers):
    found = [policy(stages, remat=remat, scan_layers=scan_layers).model for remat in (None, True)]
    assert found[1].config == dataclasses.replace(found[0].config, remat=True)
    assert found[1].description() == found[0].description()
    trained = builders.supervised(
        setup(), SCANNED.config, initial_checkpoint=str(stages / "sft"), remat=True
    )
    assert trained.model.config == dataclasses.replace(SCANNED.config, remat=True)


# --- memory and reading --------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """The dtypes that kernels were read in, a checkpoint each time; the reading is the real one."""
    found = []

    def place(stored, sharding, dtype):
        found.append(str(dtype["decoder"]["layers"]["mlp"]["wo"]["kernel"]))
        return arrays.place(stored, sharding, dtype)

    monkeypatch.setattr(networks, "place", place)
    return found


def train(learner, workdir, steps):
    class Batches:
        def batch(self, index):
            return jax.device_get(dict(batch(learner, index)))

    return training_loop(
        learner,
        Batches(),
        workdir=workdir,
        steps=steps,
        description=DESCRIPTION,
        log_period=1,
        checkpoint_period=2,
        keep_checkpoints=1,
    )


@pytest.mark.parametrize(
    ("build", "whole", "resumed"),
    [
        pytest.param(supervised, ["float32"], [], marks=pytest.mark.long),
        # The rater, and then: where training starts; what is frozen is a cast of it.
        pytest.param(
            policy, ["bfloat16", "float32"], ["bfloat16", "bfloat16"], marks=pytest.mark.long
        ),
    ],
    ids=["supervised", "policy"],
)
def test_a_run_reads_its_start_once_and_one_that_continues_not_at_all(
    stages, tmp_path, reads, build, whole, resumed
):
    undisturbed = train(build(stages), tmp_path / "whole", 4)
    assert reads == whole
    reads.clear()
    train(build(stages), tmp_path / "stopped", 2)
    assert reads == whole
    reads.clear()
    continued = train(build(stages), tmp_path / "stopped", 4)
    assert reads == resumed
    jax.tree.map(np.testing.assert_array_equal, continued.params, undisturbed.params)
    jax.tree.map(np.testing.assert_array_equal, continued.opt_state, undisturbed.opt_state)


@pytest.mark.parametrize(
    "frozen_dtype",
    [*(pytest.param(d, marks=pytest.mark.long) for d in (None, "float32")), "bfloat16"],
)
def test_the_devices_hold_the_state_and_what_is_frozen_and_nothing_else(stages, frozen_dtype):
    """Arrays as large as a parameter; `frozen_dtype` None is SFT, which has nothing frozen."""
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    learner = policy(stages, frozen_dtype) if frozen_dtype else supervised(stages)
    state = learner.init()
    state, _ = learner.train_step(state, batch(learner))
    gc.collect()
    held = [x for x in jax.live_arrays() if id(x) not in before and x.size > 500]
    wanted = [x for x in jax.tree.leaves((state, learner._frozen)) if x.size > 500]
    assert {id(x) for x in held} == {id(x) for x in wanted}


def test_a_start_on_the_host_is_not_written_over():
    network = tiny.model(tiny.RATER_VOCABULARY)
    start = tiny.params(network, 1)
    learner = tiny.learner("supervised", network, initial_params=lambda: start)
    rows = learner.partitioner.place_batch(tiny.batch("supervised", 0))
    for _ in range(2):
        state, _ = learner.train_step(learner.init(), rows)
    changed = jax.tree.map(lambda x, y: bool(np.any(x != y)), state.params, start)
    assert any(jax.tree.leaves(changed))
    jax.tree.map(np.testing.assert_array_equal, start, tiny.params(network, 1))
