"""The loop: resumes bit for bit, never keeps a bad state, says what happened."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import checkpoints
from nlhf_jax.errors import UserError
from nlhf_jax.train import Preempted, TrainingDiverged, mean_metrics
from tests.tiny_learner import (
    LinearBatches,
    LinearLearner,
    State,
    default_learner,
    large_learner,
    run,
)

REPOSITORY = Path(__file__).resolve().parents[1]


def lines(directory, split):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if row["split"] == split}


def saved_steps(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


def by_hand(steps):
    """The same training without the loop: final state, and the loss of every step."""
    learner, batches = default_learner(), LinearBatches()
    state, losses = learner.init(), []
    for index in range(steps):
        state, metrics = learner.train_step(
            state, learner.partitioner.place_batch(batches.batch(index))
        )
        losses.append(float(metrics["loss"]))
    return state, losses


def test_the_loop_takes_the_learners_steps_on_the_batches_in_order(tmp_path):
    state, losses = by_hand(12)
    assert_same(run(tmp_path, 12), state)
    assert_same(checkpoints.load(tmp_path).params, state.params)
    written = {step: row["loss"] for step, row in lines(tmp_path, "train").items()}
    assert written == pytest.approx(
        {5: np.mean(losses[:5]), 10: np.mean(losses[5:10]), 12: np.mean(losses[10:])}, rel=1e-12
    )


def test_the_same_command_continues_and_ends_with_the_same_bits(tmp_path):
    state = run(tmp_path, 23)
    assert saved_steps(tmp_path) == [20, 23]
    assert_same(run(tmp_path, 40), by_hand(40)[0])
    assert saved_steps(tmp_path) == [30, 40]
    assert list(lines(tmp_path, "train")) == [5, 10, 15, 20, 23, 25, 30, 35, 40]
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert (timing["first_step"], timing["steps"]) == (23, 40)
    assert int(state.step) == 23


def test_a_finished_run_is_left_as_it_is(tmp_path):
    state = run(tmp_path, 10)
    before = (tmp_path / "timing.json").read_text(), (tmp_path / "metrics.jsonl").read_text()
    assert_same(run(tmp_path, 10), state)
    assert before == (
        (tmp_path / "timing.json").read_text(),
        (tmp_path / "metrics.jsonl").read_text(),
    )


def test_fewer_steps_than_were_taken_is_an_error(tmp_path):
    run(tmp_path, 10)
    with pytest.raises(UserError, match=r"TRAIN_STEPS is 5 but .* trained for 10 steps"):
        run(tmp_path, 5)


@pytest.mark.parametrize("setting", ["log_period", "checkpoint_period"])
def test_periods_are_positive(tmp_path, setting):
    with pytest.raises(UserError, match=f"{setting} is 0"):
        run(tmp_path, 5, **{setting: 0})


def test_the_next_batch_is_made_while_the_device_works(tmp_path):
    """By the time the host first waits for a step, it has asked for the batch after it."""
    events = []

    class Batches(LinearBatches):
        def batch(self, step_index):
            events.append(f"batch {step_index}")
            return super().batch(step_index)

    class Learner(LinearLearner):
        def __init__(self):
            super().__init__()
            compiled = self.train_step

            def train_step(state, batch):
                events.append(f"step {len([e for e in events if 'step' in e])}")
                return compiled(state, batch)

            self.train_step = train_step

    run(tmp_path, 3, Batches(), Learner())
    assert events == ["batch 0", "step 0", "batch 1", "step 1", "batch 2", "step 2"]


def test_a_step_that_copies_from_the_host_by_accident_is_refused(tmp_path):
    class Learner(LinearLearner):
        def __init__(self):
            super().__init__()
            compiled = self.train_step
            self.train_step = lambda state, batch: compiled(
                state, batch | {"inputs": np.zeros((16, 64), np.float32)}
            )

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(tmp_path, 3, learner=Learner())


# --- evaluation ----------------------------------------------------------------------------------


def validation(rows, valid=None):
    batch = LinearBatches().batch(10_000)
    valid = rows if valid is None else valid
    return {name: array[:rows] for name, array in batch.items()} | {
        "valid": (np.arange(rows) < valid).astype(np.float32)
    }


def test_evaluation_is_the_mean_over_valid_rows_of_all_batches(tmp_path):
    learner = default_learner()
    state = learner.init()
    whole = mean_metrics(learner, state, [validation(16, valid=11)])
    split = mean_metrics(
        learner,
        state,
        [
            {name: array[:8] for name, array in validation(16).items()},
            {name: array[8:] for name, array in validation(16, valid=11).items()},
        ],
    )
    # The parameters are zero, so the loss is the mean square of the targets.
    expected = np.mean(validation(11)["targets"].astype(np.float64) ** 2)
    assert whole == pytest.approx({"loss": expected}, rel=1e-6)
    assert split == pytest.approx({"loss": expected}, rel=1e-6)


def test_evaluation_happens_at_its_period_and_at_the_end(tmp_path):
    run(tmp_path, 14, eval_batches=[validation(16)], eval_period=6)
    assert list(lines(tmp_path, "validation")) == [6, 12, 14]


def test_the_best_checkpoint_stays(tmp_path):
    run(
        tmp_path,
        40,
        learner=LinearLearner(learning_rate=0.2),
        eval_batches=[validation(16)],
        best_metric="loss",
        best_mode="max",  # the worst fit is the first one, so that retention alone would lose it
    )
    losses = {step: row["loss"] for step, row in lines(tmp_path, "validation").items()}
    assert list(losses) == [10, 20, 30, 40]
    assert saved_steps(tmp_path) == [10, 30, 40]
    assert checkpoints.load(f"{tmp_path}#best").step == max(losses, key=losses.get) == 10


def test_numbers_about_the_data_are_written_once(tmp_path):
    run(tmp_path, 5, data_metrics={"inputs_cut": 3})
    run(tmp_path, 9, data_metrics={"inputs_cut": 3})
    assert lines(tmp_path, "data") == {0: {"step": 0, "split": "data", "inputs_cut": 3.0}}
    assert (tmp_path / "metrics.jsonl").read_text().count("inputs_cut") == 1


# --- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad_step", [14, 20, 23])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, bad_step):
    with pytest.raises(TrainingDiverged) as raised:
        run(tmp_path, 23, LinearBatches(bad_step=bad_step))
    last = 10 if bad_step <= 20 else 20
    assert f"the loss is nan at step {bad_step}; the last good checkpoint is step {last}" in str(
        raised.value
    )
    assert saved_steps(tmp_path)[-1] == last
    assert_same(checkpoints.load(tmp_path).params, by_hand(last)[0].params)
    # The data mended, the run goes on from there.
    assert_same(run(tmp_path, 23), by_hand(23)[0])


def test_divergence_before_the_first_checkpoint_says_so(tmp_path):
    with pytest.raises(TrainingDiverged, match="step 2; no checkpoint had been saved"):
        run(tmp_path, 23, LinearBatches(bad_step=2))


def test_parameters_that_are_not_finite_are_not_saved_though_their_loss_was(tmp_path):
    class Learner(LinearLearner):
        def _train_step(self, state, batch):
            state, metrics = super()._train_step(state, batch)
            kernel = state.params["dense"]["kernel"]
            kernel = kernel.at[3].set(jnp.where(state.step == 10, jnp.inf, kernel[3]))
            params = state.params | {"dense": state.params["dense"] | {"kernel": kernel}}
            return State(state.step, params, state.opt_state, state.average), metrics

    with pytest.raises(TrainingDiverged, match="params/dense/kernel is not finite at step 10"):
        run(tmp_path, 20, learner=Learner())
    assert saved_steps(tmp_path) == []


# --- kills ---------------------------------------------------------------------------------------


def test_sigterm_finishes_the_step_saves_and_stops(tmp_path):
    class Batches(LinearBatches):
        def batch(self, step_index):
            if step_index == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step_index)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="after step 7 of 30; everything is saved in"):
        run(tmp_path, 30, Batches())
    assert signal.getsignal(signal.SIGTERM) is handler
    assert saved_steps(tmp_path) == [7]
    assert_same(run(tmp_path, 30), by_hand(30)[0])


def test_the_loop_runs_in_a_thread_too(tmp_path):
    """Where Python allows no signal handlers: in a notebook's worker, for example."""
    states = []
    thread = threading.Thread(target=lambda: states.append(run(tmp_path, 4)))
    thread.start()
    thread.join()
    assert_same(states[0], by_hand(4)[0])


def test_killed_at_any_moment_the_same_command_ends_with_the_same_bits(tmp_path):
    """SIGKILL at random moments around the asynchronous saves, which come every three steps."""

    def start(*kill):
        arguments = [str(argument) for argument in (tmp_path / "killed", 30, *kill)]
        return subprocess.run(
            [sys.executable, "-m", "tests.tiny_learner", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )

    moment = random.Random(0)
    for at_step in (4, 13, 22):
        killed = start(at_step, moment.uniform(0, 150))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = start()
    assert finished.returncode == 0, finished.stderr
    assert "continues at step" in finished.stderr

    state = run(tmp_path / "whole", 30, learner=large_learner())
    loaded = checkpoints.load(tmp_path / "killed")
    assert loaded.step == 30
    assert_same(loaded.params, state.params)
    assert_same(checkpoints.load(f"{tmp_path / 'killed'}#average").params, state.average)
    assert lines(tmp_path / "whole", "train").keys() == lines(tmp_path / "killed", "train").keys()
