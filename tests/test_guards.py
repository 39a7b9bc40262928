"""Guards: what goes wrong is warned of, then ends the run; real learners that go wrong do so."""

import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import checkpoints, objectives
from nlhf_jax.errors import UserError
from nlhf_jax.guards import Guards, TrainingDiverged, Watch, summary
from nlhf_jax.interruption import Preempted
from nlhf_jax.learners.policy import PolicyLearner
from nlhf_jax.learners.votes import VoteLearner
from nlhf_jax.optimizers import adamw
from nlhf_jax.raters import PreferenceModel, PreferenceScorer
from nlhf_jax.train import training_loop
from tests import tiny
from tests.tiny_learner import DESCRIPTION

OFF = Guards(**{field.name: None for field in dataclasses.fields(Guards)})


def limits(**settings) -> Guards:
    return dataclasses.replace(OFF, **({"patience": 3} | settings))


# --- what a watch says of numbers ----------------------------------------------------------------


def watched(guards, stream):
    """(step, ends the run) of every alarm, up to the end."""
    watch, found = Watch(guards), []
    for step, metrics in enumerate(stream, start=1):
        # What it remembers is all in the JSON.
        watch = Watch(guards, json.loads(json.dumps(watch.to_json())))
        for alarm in watch.observe(metrics):
            found.append((step, alarm.ends_run))
            if alarm.ends_run:
                return found
    return found


def policy(kl=0.5, entropy=20.0, length=10.0, **others):
    return {"loss": 1.0, "kl": 10 * kl, "entropy": entropy, "response_length": length} | others


def test_a_limit_that_stays_passed_is_warned_of_once_and_ends_the_run():
    """The median of ten steps is above from the sixth bad one on."""
    stream = [policy()] * 20 + [policy(kl=5.0)] * 20
    assert watched(limits(max_kl=3.0), stream) == [(26, False), (28, True)]
    assert watched(limits(max_kl=3.0, patience=None), stream) == [(26, False)]
    assert watched(limits(max_kl=None), stream) == []


def test_what_gets_well_again_ends_nothing_and_what_comes_back_is_said_less_and_less():
    stream = ([policy(kl=5.0)] * 7 + [policy()] * 10) * 9
    warned = [6 + 17 * n for n in range(9)]
    found = watched(limits(max_kl=3.0, patience=7), [policy()] * 10 + stream)
    assert found == [(10 + warned[n - 1], False) for n in (1, 2, 4, 8)]


@pytest.mark.parametrize(
    ("setting", "bad"), [("min_entropy", {"entropy": 0.5}), ("min_length", {"length": 1.0})]
)
def test_collapse_is_measured_against_the_start(setting, bad):
    stream = [policy()] * 15 + [policy(**bad)] * 20
    if setting == "min_length":  # of which the entropy is a part
        stream = [m | {"entropy": 2 * m["response_length"]} for m in stream]
    assert watched(limits(**{setting: 0.2}), stream) == [(21, False), (23, True)]
    assert watched(limits(**{setting: 0.01}), stream) == []


def test_a_spike_is_one_step_above_many_medians_and_does_not_move_them():
    calm = [{"gradient_norm": 1.0 + n % 3} for n in range(60)]
    spiked = [*calm[:30], {"gradient_norm": 45.0}, *calm[30:]]
    assert watched(limits(max_gradient_spike=20.0), spiked) == [(31, False)]
    lasting = calm + [{"gradient_norm": 45.0}] * 300
    assert watched(limits(max_gradient_spike=20.0, patience=250), lasting) == [
        (61, False),
        (310, True),
    ]
    fading = [{"gradient_norm": 0.9**n} for n in range(200)] + [{"gradient_norm": 1.0}]
    assert watched(limits(max_gradient_spike=20.0), fading) == []  # as it was at the start


def test_updates_may_be_skipped_so_many_times_in_a_row():
    stream = [{"skipped": float(n in (3, 6, 7, 8, 9))} for n in range(12)]
    assert watched(limits(max_skipped_updates=4), stream) == [(4, False), (7, False)]
    assert watched(limits(max_skipped_updates=3), stream) == [(4, False), (7, False), (10, True)]
    assert watched(limits(max_skipped_updates=0), stream) == [(4, True)]
    assert watched(None, stream) == [(4, True)]


def test_a_rater_in_training_has_ten_times_as_long_to_unlearn_its_bias():
    stream = [{"order_bias": -0.9}] * 60
    frozen = [m | {"preference": 0.5, "advantage_squared": 0.1} for m in stream]
    training = [m | {"accuracy": 0.5, "saturation": 0.1} for m in stream]
    assert watched(limits(max_order_bias=0.5), frozen) == [(10, False), (12, True)]
    assert watched(limits(max_order_bias=0.5), training) == [(10, False), (39, True)]


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="GUARD_PATIENCE is 0 but must be at least 1, or None"):
        limits(patience=0)
    with pytest.raises(UserError, match="MAX_KL is -1 but must be at least 0, or None"):
        limits(max_kl=-1)


# --- what real learners do -----------------------------------------------------------------------

NETWORK = tiny.model(tiny.RATER_VOCABULARY)


class Batches:
    """In steps of `bad` the votes are no numbers; in the step `stop` SIGTERM comes."""

    def __init__(self, kind, bad=(), stop=None):
        self._kind, self._bad, self._stop = kind, bad, stop

    def batch(self, step_index):
        if step_index == self._stop:  # is asked for while the step of that number runs
            os.kill(os.getpid(), signal.SIGTERM)
        batch = tiny.batch(self._kind, step_index)
        if step_index + 1 in self._bad:
            batch["vote_share"][:] = np.nan
        return batch


def train(workdir, learner, guards, steps=60, bad=(), stop=None):
    kind = {"policy": "nash_md"}.get(learner.kind, learner.kind)
    settings = {"log_period": 10, "checkpoint_period": 5, "keep_checkpoints": 99}
    return training_loop(
        learner,
        Batches(kind, bad, stop),
        workdir=workdir,
        steps=steps,
        description=DESCRIPTION,
        guards=guards,
        **settings,
    )


def guard_lines(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "guards"]


def assert_ends(directory, learner, guard, macro, **settings):
    """The run warns, then ends; what it says names the guard's macro and the last checkpoint."""
    with pytest.raises(TrainingDiverged) as raised:
        train(directory, learner, limits(**settings), steps=100)
    warning, end = guard_lines(directory)
    assert (warning[f"{guard}_ended_run"], end[f"{guard}_ended_run"]) == (0, 1)
    assert end["step"] == warning["step"] + end[f"{guard}_steps"] - 1
    saved = checkpoints.load(directory).step if (directory / "checkpoints").exists() else None
    message = str(raised.value)
    assert f"at step {end['step']}; the last good checkpoint is step {saved} in" in message
    assert f"{macro}, which is" in message
    # The report says it too.
    (said,) = summary(guard_lines(directory))
    assert f"(step {warning['step']}; that ended the run at step {end['step']})." in said
    return warning["step"], saved


def suddenly(rate):
    """Almost nothing is learned for 20 steps, and then far too much at once."""
    return adamw(optax.piecewise_constant_schedule(1e-6, {20: rate / 1e-6}), clip_norm=None)


@pytest.fixture(scope="module")
def wild_rater():
    return tiny.learner("preference", NETWORK, optimizer=suddenly(3.0))


@pytest.fixture(scope="module")
def wild_policy():
    settings = {"tau": 0.0, "length": 6, "optimizer": suddenly(0.3)}
    return tiny.policy_learner(NETWORK, "nash_md", rater_network=NETWORK, **settings)


def test_updates_that_are_not_finite_are_skipped_and_then_end_the_run(tmp_path, wild_rater):
    """Skipped: every number that is written is of the other steps."""
    guards = limits(max_skipped_updates=2)
    state = train(tmp_path / "few", wild_rater, guards, steps=18, bad=(4, 9, 10))
    assert int(state.step) == 18
    assert [row["step"] for row in guard_lines(tmp_path / "few")] == [4, 9]
    text = (tmp_path / "few" / "metrics.jsonl").read_text()
    assert "null" not in text and "NaN" not in text
    with pytest.raises(TrainingDiverged, match="not finite, so .* for 3 steps in a row at step 10"):
        train(tmp_path / "many", wild_rater, guards, steps=18, bad=(8, 9, 10))
    # The steps that were skipped left a good state behind.
    assert checkpoints.load(tmp_path / "many").step == 5
    resumed = train(tmp_path / "many", wild_rater, guards, steps=18)
    whole = train(tmp_path / "whole", wild_rater, guards, steps=18)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (resumed, whole)))


def test_a_gradient_that_explodes_ends_the_run(tmp_path, wild_rater):
    step, saved = assert_ends(
        tmp_path,
        wild_rater,
        "gradient_spike",
        "MAX_GRADIENT_SPIKE",
        max_gradient_spike=5.0,
        patience=2,
    )
    assert step > 20 and saved < step


def test_a_kl_that_blows_up_ends_the_run_at_its_last_good_checkpoint(tmp_path, wild_policy):
    step, saved = assert_ends(
        tmp_path, wild_policy, "kl_per_token", "MAX_KL", max_kl=1.5, patience=12
    )
    # A save was due meanwhile, twice; a state that is in doubt replaces none.
    assert saved == (step - 1) // 5 * 5


@dataclasses.dataclass(frozen=True)
class Shortness:
    """A scorer that likes nothing but short responses."""

    measures = "reward"
    pairwise = False

    def score(self, params, text, y, other):
        return -jnp.sum(y != tiny.PAD, axis=-1).astype(jnp.float32)

    def advantages(self, scores, row_weights):
        return scores - jnp.sum(row_weights * scores)

    def win_rate(self, params, text, y, other):
        return jnp.full(y.shape[0], 0.5)


@pytest.fixture(scope="module")
def terse_policy():
    partitioner = tiny.one_device()
    return PolicyLearner(
        model=NETWORK,
        opponent=None,
        objective=objectives.policy_gradient(0.0, "sampled"),
        scorer=Shortness(),
        reference_params=lambda dtype: tiny.placed(partitioner, NETWORK, tiny.params(NETWORK, 1)),
        scorer_params={},
        max_response_length=12,
        partitioner=partitioner,
        optimizer=adamw(0.01, clip_norm=1.0),
        seed=0,
    )


def test_responses_that_collapse_end_the_run(tmp_path, terse_policy):
    settings = {"min_length": 0.3}
    assert_ends(tmp_path, terse_policy, "response_length", "MIN_LENGTH", **settings)


def test_an_entropy_that_collapses_ends_the_run(tmp_path, terse_policy):
    settings = {"min_entropy": 0.05}
    assert_ends(tmp_path, terse_policy, "entropy_per_token", "MIN_ENTROPY", **settings)


@dataclasses.dataclass(frozen=True)
class Loud(PreferenceModel):
    """A rater without order bias, `factor` times as sure; but a `bias` for what it reads first."""

    factor: float = 1.0
    bias: float = 0.0

    def logit(self, params, text, first, second):
        forward = super().logit(params, text, first, second)
        backward = super().logit(params, text, second, first)
        return self.factor * (forward - backward) + self.bias


@functools.cache
def rater_learner(**loud):
    rater = Loud(NETWORK, tiny.PREFERENCE_TEMPLATE, tiny.LABELS, **loud)
    return VoteLearner(
        rater=rater,
        partitioner=tiny.one_device(),
        optimizer=adamw(1e-6, clip_norm=1.0),
        seed=0,
        initial_params=lambda: tiny.params(NETWORK, 1),
    )


@functools.cache
def policy_of(**loud):
    learner = tiny.learner("nash_md", NETWORK, optimizer=adamw(1e-6, clip_norm=1.0))
    rater = Loud(NETWORK, tiny.PREFERENCE_TEMPLATE, tiny.LABELS, **loud)
    learner._scorer = PreferenceScorer(rater, both_orders=True)
    return learner


@pytest.mark.parametrize("make", [rater_learner, policy_of])
def test_a_rater_that_saturates_ends_the_run(tmp_path, make):
    """A policy's is frozen: its gradient is zero nearly everywhere."""
    learner, settings = make(factor=1e4), {"max_saturation": 0.5}
    step, _ = assert_ends(tmp_path, learner, "saturation", "MAX_SATURATION", **settings)
    assert step == 10


@pytest.mark.parametrize(
    ("make", "guard"), [(rater_learner, "order_bias_in_training"), (policy_of, "order_bias")]
)
def test_a_rater_that_prefers_what_it_reads_first_ends_the_run(tmp_path, make, guard):
    learner, settings = make(factor=0.1, bias=3.0), {"max_order_bias": 0.5}
    step, _ = assert_ends(tmp_path, learner, guard, "MAX_ORDER_BIAS", **settings)
    assert step == 10


def test_a_run_that_was_stopped_meanwhile_ends_at_the_same_step_with_the_same_lines(tmp_path):
    """In the middle of a warning, too: what a guard remembers is in the checkpoint."""
    learner, guards = rater_learner(factor=0.1, bias=3.0), limits(max_order_bias=0.5)
    with pytest.raises(TrainingDiverged) as whole:
        train(tmp_path / "whole", learner, guards)
    for step in (7, 13, 31):
        with pytest.raises(Preempted, match=f"after step {step} of 60; everything is saved"):
            train(tmp_path / "it", learner, guards, stop=step)
    with pytest.raises(TrainingDiverged) as it:
        train(tmp_path / "it", learner, guards)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "it")]
    assert lines[0] == lines[1]
    assert "at step 39; the last good checkpoint is step 35" in str(whole.value)
    assert str(it.value) == str(whole.value).replace("/whole/", "/it/")


def test_what_is_in_doubt_is_not_saved_by_sigterm_either(tmp_path, wild_policy):
    guards = limits(max_kl=1.5, patience=12)
    with pytest.raises(TrainingDiverged) as whole:
        train(tmp_path / "whole", wild_policy, guards, steps=100)
    warned = guard_lines(tmp_path / "whole")[0]["step"]
    last = (warned - 1) // 5 * 5
    said = f"a guard warns, so step {last} before that stays the last that is saved"
    with pytest.raises(Preempted, match=f"after step {warned + 2} of 100; {said}"):
        train(tmp_path / "it", wild_policy, guards, steps=100, stop=warned + 2)
    with pytest.raises(TrainingDiverged) as it:
        train(tmp_path / "it", wild_policy, guards, steps=100)
    assert str(it.value) == str(whole.value).replace("/whole/", "/it/")
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "it")]
    assert lines[0] == lines[1]
