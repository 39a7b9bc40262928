"""The phases are the step in pieces, and do what is counted in closed form."""

import dataclasses

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.benchmarking import measure, phases, workload
from nlhf_jax.planning import costs, programs
from nlhf_jax.planning.sizes import ALONE, Sizes

# So few tokens that, if it could, one of 64 drawn would be EOS.
TINY = {"vocab_size": 8, "emb_dim": 16, "mlp_dim": 32, "num_heads": 2, "head_dim": 8}
TINY |= {"num_encoder_layers": 1, "num_decoder_layers": 1}
# Matrix products outweigh the rest, as in published sizes.
WIDE = {"vocab_size": 512, "emb_dim": 256, "mlp_dim": 512, "num_heads": 4, "head_dim": 64}
WIDE |= {"num_encoder_layers": 2, "num_decoder_layers": 1}
LENGTHS = {"batch": 8, "text": 12, "response": 8}


@pytest.fixture(autouse=True)
def no_configuration_stays():
    yield
    gin.clear_config()


def described(gin_file, sizes, **numbers):
    """A request, and its run with such sizes."""
    # Without a warm-up: in its first step the learning rate is 0.
    asked = workload.request([gin_file], ["WARMUP_STEPS=0"], **numbers)
    run = asked.run()
    model = dataclasses.replace(run.model, **sizes)
    rater = run.rater and dataclasses.replace(run.rater, **sizes)
    return asked, dataclasses.replace(run, model=model, rater=rater)


def one_step(work, pieces):
    """The state, and all metrics, after such a chain."""
    values = {"state": jax.tree.map(jnp.copy, work.state)}
    values |= {"frozen": work.frozen, "batch": work.batch}
    for piece in pieces:
        program, _ = measure.compiled(piece, values)
        assert measure.timed(piece, program, values) > 0
    return values["state"], values.get("observed", {}) | values["metrics"], values


@pytest.mark.parametrize("gin_file", ["mini/nash_md.gin", "mini/rlhf.gin"])
def test_the_phases_of_a_policy_one_after_the_other_are_the_step(gin_file):
    work = workload.prepare(*described(gin_file, TINY, **LENGTHS), jax.devices()[:1])
    pieces = phases.pieces(work.learner)
    assert [piece.name for piece in pieces] == list(phases.costs(work.run, work.mesh))
    state, metrics, values = one_step(work, pieces)
    wanted, of_step, _ = one_step(work, [phases.step(work.learner)])
    same = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(same, state, wanted)
    assert metrics.keys() == of_step.keys()
    jax.tree.map(same, metrics, of_step)
    before, after = (jax.tree.leaves(one.params)[0] for one in (work.state, state))
    assert not np.array_equal(before, after)  # there was a step
    # No response ends early.
    assert metrics["response_length"] == LENGTHS["response"]
    assert values["responses"].shape == (8, len(work.run.players), LENGTHS["response"])


def test_the_phases_of_supervised_training_are_its_step():
    """Its network is the gin file's."""
    own = {name: size for name, size in TINY.items() if name != "vocab_size"}
    overrides = [f"t5_layers.T5Config.{name}={size}" for name, size in own.items()]
    overrides.append("WARMUP_STEPS=0")
    asked = workload.request(["mini/sft.gin"], overrides, **LENGTHS)
    work = workload.prepare(asked, asked.run(), jax.devices()[:1])
    pieces = phases.pieces(work.learner)
    assert [piece.name for piece in pieces] == ["gradient", "update"]
    state, metrics, _ = one_step(work, pieces)
    wanted, of_step, _ = one_step(work, [phases.step(work.learner)])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5), state, wanted)
    assert metrics["loss"] == pytest.approx(float(of_step["loss"]), rel=1e-5)


def test_a_rater_is_benchmarked_as_its_gin_file_trains_it():
    asked = workload.request(["mini/preference.gin"], text=20, response=8)
    run = asked.run()
    assert run.lengths[0] == 20 + 2 * 8 + run.template + 1
    assert list(phases.costs(run, ALONE)) == ["gradient", "update"]


def shapes_of(gin_file, **numbers):
    """A learner of shapes, and its run."""
    asked, run = described(gin_file, WIDE, **numbers)
    learner, frozen, batch = programs.abstract_learner(
        run, asked.gin_files, asked.overrides, (), jax.devices()[:1]
    )
    return learner, run, {"state": learner.abstract_state(), "frozen": frozen, "batch": batch}


# Of RLHF one response is read by a reward model; of IPO both are learned from.
@pytest.mark.parametrize("kind", ["nash_md", "rlhf", "online_ipo"])
def test_flops_of_each_phase_are_those_of_the_closed_form(kind):
    learner, run, values = shapes_of(f"mini/{kind}.gin", batch=2, text=40, response=24)
    run = dataclasses.replace(run, apart=True)  # The tests' device is a CPU.
    expected, total = phases.costs(run, ALONE), 0.0
    for piece in phases.pieces(learner):
        arguments = [values[name] for name in piece.takes]
        counted = piece.function.lower(*arguments).cost_analysis()["flops"]
        total += counted
        values |= zip(piece.gives, jax.eval_shape(piece.function, *arguments), strict=True)
        wanted = expected[piece.name].flops
        if piece.name == "decode":  # XLA counts a loop's body once
            sizes = Sizes.of(run.model)
            before = len(run.streams) * costs.cross_keys_flops(sizes, 2, 40)
            wanted = before + (wanted - before) / 24
        if piece.name != "update":
            assert counted == pytest.approx(wanted, rel=0.05), piece.name
    # The step does not do more, such as read the prompts once more for the gradient.
    step = learner.lower_train_step(values["frozen"], values["batch"])
    assert step.cost_analysis()["flops"] == pytest.approx(total, rel=0.005)


def test_sizes_are_those_of_the_runs_beside_a_policys():
    asked = workload.request(["mini/nash_md.gin"])
    assert (asked.policy, asked.rater) == ("mini/sft.gin", "mini/preference.gin")
    assert asked.run().model.vocab_size == asked.run().rater.vocab_size == 256
    assert workload.request(["mini/rlhf.gin"]).rater == "mini/reward.gin"
    named = workload.request(["mini/nash_md.gin"], policy="t5_1_1_small")
    assert (named.policy, named.rater) == ("t5_1_1_small", "mini/preference.gin")
