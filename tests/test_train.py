"""The loop: resumes bit for bit, never keeps a bad state, says what happened."""

import copy
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


def test_a_run_that_was_killed_after_its_last_save_has_its_timing_when_started_again(tmp_path):
    run(tmp_path, steps=4)
    (tmp_path / "timing.json").unlink()
    run(tmp_path, steps=4)
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert (timing["first_step"], timing["steps"], timing["steps_per_second"]) == (4, 4, None)


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


def signalled(step, signals=(signal.SIGTERM,)):
    """The default learner, during whose step the process gets signals."""
    learner = copy.copy(default_learner())
    compiled = learner.train_step

    def train_step(state, batch):
        if jax.device_get(state.step) + 1 == step:
            for number in signals:
                os.kill(os.getpid(), number)
        return compiled(state, batch)

    learner.train_step = train_step
    return learner


def test_sigterm_finishes_the_step_saves_and_stops(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="after step 7 of 30; everything is saved in") as raised:
        run(tmp_path, 30, learner=signalled(7))
    assert raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert saved_steps(tmp_path) == [7]
    assert_same(run(tmp_path, 30), by_hand(30)[0])


@pytest.fixture
def ctrl_c():
    """As in a terminal: tests that run in the background may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_first_ctrl_c_saves_and_the_second_does_not_wait(tmp_path, capfd, ctrl_c):
    with pytest.raises(Preempted, match="by Ctrl-C after step 7 of 30; everything") as raised:
        run(tmp_path / "once", 30, learner=signalled(7, [signal.SIGINT]))
    assert raised.value.exit_code == 130
    assert "again to stop at once" in capfd.readouterr().err
    assert saved_steps(tmp_path / "once") == [7]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "twice", 30, learner=signalled(7, [signal.SIGINT] * 2))
    assert signal.getsignal(signal.SIGINT) is ctrl_c
    assert saved_steps(tmp_path / "twice") == []


class Evaluated:
    """Validation batches that count how often they are read, and may send a signal meanwhile."""

    def __init__(self, signal_at_reading=None):
        self.readings = 0
        self._signal_at_reading = signal_at_reading

    def __iter__(self):
        self.readings += 1
        yield validation(16)
        if self.readings == self._signal_at_reading:
            os.kill(os.getpid(), signal.SIGTERM)
        yield validation(16, valid=5)


EVALUATING = {
    "eval_period": 6,
    "best_metric": "loss",
    "best_mode": "max",
    "keep_checkpoints": 9,
}


# Before the first line; between lines; log, save and evaluation; evaluation alone; the last step.
@pytest.mark.parametrize("stops", [(3,), (7, 8), (10,), (12,), (23,), (10, 20, 23)])
def test_a_stopped_run_writes_the_lines_of_an_undisturbed_one_and_keeps_the_same_best(
    tmp_path, stops
):
    run(tmp_path / "whole", 23, eval_batches=Evaluated(), **EVALUATING)
    for step in stops:
        with pytest.raises(Preempted, match=f"after step {step} of 23"):
            run(tmp_path / "it", 23, None, signalled(step), eval_batches=Evaluated(), **EVALUATING)
        assert step not in lines(tmp_path / "it", "validation")
        assert step in saved_steps(tmp_path / "it")
    assert_same(run(tmp_path / "it", 23, eval_batches=Evaluated(), **EVALUATING), by_hand(23)[0])
    assert_same_record(tmp_path)


def assert_same_record(directory):
    whole, it = ((directory / name / "metrics.jsonl").read_text() for name in ("whole", "it"))
    assert it.splitlines() == whole.splitlines()
    best = [checkpoints.load(f"{directory / name}#best") for name in ("whole", "it")]
    assert [found.step for found in best] == [10, 10]
    assert best[0].description["metrics"] == best[1].description["metrics"]
    assert (directory / "it" / "timing.json").exists()


@pytest.mark.parametrize("reading", [2, 6])  # that of step 10, and that of the last step
def test_sigterm_does_not_wait_for_an_evaluation(tmp_path, reading):
    run(tmp_path / "whole", 23, eval_batches=Evaluated(), **EVALUATING)
    batches = Evaluated(signal_at_reading=reading)
    with pytest.raises(Preempted, match="everything is saved"):
        run(tmp_path / "it", 23, eval_batches=batches, **EVALUATING)
    assert batches.readings == reading
    # Nor for the evaluation that it makes up for.
    with pytest.raises(Preempted, match="everything is saved"):
        run(tmp_path / "it", 23, eval_batches=Evaluated(signal_at_reading=1), **EVALUATING)
    run(tmp_path / "it", 23, eval_batches=Evaluated(), **EVALUATING)
    assert_same_record(tmp_path)


def test_a_run_killed_after_a_checkpoint_between_two_lines_writes_the_same_lines(tmp_path):
    class Batches(LinearBatches):
        def batch(self, step_index):
            if step_index == 9:
                raise RuntimeError("the machine is gone")
            return super().batch(step_index)

    run(tmp_path / "whole", 23, checkpoint_period=7)
    with pytest.raises(RuntimeError, match="gone"):
        run(tmp_path / "it", 23, Batches(), checkpoint_period=7)
    assert saved_steps(tmp_path / "it") == [7]
    run(tmp_path / "it", 23, checkpoint_period=7)
    whole, it = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "it"))
    assert it.splitlines() == whole.splitlines()


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
