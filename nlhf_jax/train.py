"""The training loop: any learner, from the first step (or the last checkpoint) to the end.

Reads top to bottom. The same command continues a run that was killed, and ends with the same
parameters bit for bit: the batches are a function of the step, randomness is a function of (seed,
step), and a checkpoint holds the whole state.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, Protocol

import jax
import numpy as np
from etils import epath

from nlhf_jax.checkpoints import Checkpoints
from nlhf_jax.errors import UserError
from nlhf_jax.files import write_json
from nlhf_jax.guards import SLOWER, SPLIT, Guards, TrainingDiverged, Watch, not_finite
from nlhf_jax.interruption import Preempted, Stopped, StopSignal
from nlhf_jax.metrics import Progress, RunningMeans, duration
from nlhf_jax.patience import Patience
from nlhf_jax.tracking import Tracking, open_writer

TIMING_FILE = "timing.json"
Batch = Mapping[str, np.ndarray]


class Batches(Protocol):
    """Training batches as a pure function of the step: nothing to save but a number."""

    def batch(self, step_index: int) -> dict[str, np.ndarray]:
        """The batch of the step with this index, from 0."""


def training_loop(
    learner: Any,
    batches: Batches,
    *,
    workdir: str | os.PathLike,
    steps: int,
    description: Mapping[str, Any],
    log_period: int,
    checkpoint_period: int,
    keep_checkpoints: int,
    eval_batches: Iterable[Batch] = (),
    eval_period: int | None = None,
    best_metric: str | None = None,
    best_mode: str = "max",
    patience: int | None = None,
    data_metrics: Mapping[str, float] | None = None,
    guards: Guards | None = None,
    tracking: Tracking | None = None,
) -> Any:
    """Trains `learner` until `steps` steps are done, or continues from the latest checkpoint.

    Args:
      learner: has `init`, `abstract_state`, `train_step`, `eval_step` and `partitioner`.
      batches: the training data.
      workdir: gets `checkpoints/`, `metrics.jsonl`, TensorBoard events and `timing.json`.
      steps: training steps in all, those before a restart included.
      description: what the checkpoints say about themselves, from `checkpoints.describe`.
      log_period: steps per line of metrics, each the mean over them.
      checkpoint_period: steps between checkpoints; the last step has one too.
      keep_checkpoints: how many of the latest checkpoints stay.
      eval_batches: validation data: batches with a float32 `valid` `[B]`, 1 for rows that count.
      eval_period: steps between evaluations, None for the last step only.
      best_metric: validation metric by which the best checkpoint stays too. The state is then
        evaluated before every save.
      best_mode: "max" or "min".
      patience: evaluations in a row without a better `best_metric` after which training ends; None
        for never.
      data_metrics: numbers about the data (examples, texts cut), written once.
      guards: what is watched; None for nothing but numbers that are not finite.
      tracking: where metrics go too, as in `tracking.requested`.

    Returns:
      The final state.

    Raises:
      TrainingDiverged: the loss or the parameters became NaN or infinite, or a guard ended the run.
      Preempted: SIGTERM or Ctrl-C came; everything is saved.
      UserError: the checkpoints in `workdir` are damaged or belong to another configuration.
    """
    _check_counts(TRAIN_STEPS=steps, log_period=log_period, checkpoint_period=checkpoint_period)

    def is_due(step: int, period: int | None) -> bool:
        return step == steps or (period is not None and step % period == 0)

    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(os.fspath(workdir), keep_checkpoints, best_metric, best_mode)
        stack.callback(checkpoints.close)
        waits = Patience(patience, best_metric, best_mode)
        run = _Run(learner, workdir, steps, description, checkpoints, guards, waits, stack)
        state, step = run.start()
        if not (run.goes_on(step) or run.owes_evaluation):
            run.end_again(step)
            return state
        run.open_metrics(step, data_metrics, tracking)
        stop = stack.enter_context(StopSignal())
        evaluation = run.make_up_for_evaluation(step, state, eval_batches, stop)
        if run.goes_on(step):
            batch = learner.partitioner.place_batch(batches.batch(step))
            run.progress.status("compiles its step")
        while run.goes_on(step):
            step += 1
            with jax.transfer_guard("disallow"):
                state, metrics = learner.train_step(state, batch)
            # The device works on this step by itself. Meanwhile: the next batch, and a look at
            # the step before, which is the one the host waits for.
            if step < steps:
                batch = learner.partitioner.place_batch(batches.batch(step))
            run.follow(step, metrics)
            if is_due(step, log_period):
                run.log(step)
            save = run.can_save(step, is_due(step, checkpoint_period))
            evaluate = is_due(step, eval_period) or (save and best_metric is not None)
            evaluation = run.evaluate(step, state, eval_batches, stop) if evaluate else {}
            stopped = stop.agreed()
            if save or not run.goes_on(step) or (stopped and not run.doubts_state()):
                run.save(step, state, evaluation)
            if stopped and (run.goes_on(step) or evaluation is None):
                run.end_early(step, stopped)
        run.end(step, evaluation or {})
        return state


def _check_counts(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise UserError(f"{name} is {value} but counts steps: give at least 1")


class _Run:
    """What a training shows and leaves behind while its loop goes on."""

    def __init__(
        self,
        learner: Any,
        workdir: str | os.PathLike,
        steps: int,
        description: Mapping[str, Any],
        checkpoints: Checkpoints,
        guards: Guards | None,
        patience: Patience,
        stack: contextlib.ExitStack,
    ):
        """`stack` closes what is opened here."""
        self._started, self._clock = time.time(), _Clock()
        self._learner = learner
        self._workdir = epath.Path(workdir)
        self._steps = steps
        self._description = description
        self._checkpoints = checkpoints
        self._stack = stack
        self._compiled = False
        self._in_flight: tuple[int, Mapping[str, jax.Array]] | None = None  # not looked at yet
        self._since_last_line = RunningMeans()
        self._guards, self._watch = guards, Watch(guards)
        self._patience = patience
        self._save_is_due = False
        self.owes_evaluation = False  # of the step that it continues from
        self._first_step = 0
        self.progress = Progress(self._workdir.name, steps)
        stack.callback(self.progress.close)

    def start(self) -> tuple[Any, int]:
        """The state, new or from the latest checkpoint, straight onto the mesh; and its step."""
        self.progress.status("makes or restores its state")
        restored = self._checkpoints.restore_latest(self._learner.abstract_state())
        for sentence in self._checkpoints.set_aside:
            self.progress.message(sentence)
        if restored is None:
            return self._learner.init(), 0
        state, position = restored
        first_step = self._first_step = position["next_batch"]
        self._since_last_line = RunningMeans(position.get("since_last_line"))
        self._watch = Watch(self._guards, position.get("guards"))
        self._patience.restore(position.get("patience"))
        self.owes_evaluation = position.get("owes_evaluation", False)
        if first_step > self._steps:
            raise UserError(
                f"TRAIN_STEPS is {self._steps} but {self._workdir} has been trained for "
                f"{first_step} steps already: raise it, or use another directory"
            )
        return state, first_step

    def goes_on(self, step: int) -> bool:
        """Whether there is another step after this one."""
        return step < self._steps and not self._patience.is_over

    def open_metrics(
        self, first_step: int, data_metrics: Mapping[str, float] | None, tracking: Tracking | None
    ) -> None:
        again = "validation" if self.owes_evaluation else None
        self._writer = open_writer(self._workdir, first_step, again, tracking)
        self._stack.callback(self._writer.close)
        if first_step:
            self.progress.message(f"continues at step {first_step} of {self._steps}")
            if damaged := len(self._checkpoints.set_aside):
                self._writer.write(first_step, "restarts", {"damaged_checkpoints": damaged})
        elif data_metrics:
            self._writer.write(0, "data", data_metrics)
        self._clock.lap("start")

    def follow(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Looks at the step before, which has ended or is waited for, and at this one if first."""
        self._look()
        self._in_flight = (step, metrics)
        if not self._compiled:
            self._look()
            self._compiled = True
            self._clock.lap("compile")
            self.progress.start(step)

    def _look(self) -> None:
        """Takes in the metrics of the step in flight, for which it waits."""
        if self._in_flight is None:
            return
        (step, metrics), self._in_flight = self._in_flight, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for alarm in self._watch.observe(values):
            self._writer.write(step, SPLIT, alarm.numbers)
            if alarm.ends_run:
                raise self._diverged(alarm.text, step, alarm.advice)
            self.progress.message(f"warning: at step {step} {alarm.text}")
        skipped = values.pop("skipped", 0.0)
        if not (skipped or math.isfinite(values["loss"])):
            raise self._diverged(f"the loss is {values['loss']}", step)
        self._since_last_line.add(values)
        self.progress.update(step, loss=values["loss"])

    def can_save(self, step: int, is_due: bool) -> bool:
        """Whether a save is due, or has been since a guard had doubts that are over."""
        self._save_is_due |= is_due
        if not self._save_is_due or (step < self._steps and self.doubts_state()):
            return False
        self._save_is_due = False
        return True

    def doubts_state(self) -> bool:
        """Whether a guard warns of the state: a checkpoint of it must not replace a good one."""
        self._look()
        return self._watch.doubts_state

    def log(self, step: int) -> None:
        """Writes the means over the steps since the last line."""
        self._look()
        self._writer.write(step, "train", self._since_last_line.take())

    def evaluate(
        self,
        step: int,
        state: Any,
        eval_batches: Iterable[Batch],
        stop: StopSignal,
    ) -> dict[str, float] | None:
        """Metrics over the validation data; None if a signal to stop came before its end."""
        self._look()  # so that what guards say of the step is written before
        self._clock.lap("train")
        found = None
        with contextlib.suppress(Stopped):
            found = mean_metrics(self._learner, state, stop.ends(eval_batches))
        if found:
            self._writer.write(step, "validation", found)
            self._patience.observe(found)
        self._clock.lap("evaluate")
        return found

    def make_up_for_evaluation(
        self, step: int, state: Any, eval_batches: Iterable[Batch], stop: StopSignal
    ) -> dict[str, float] | None:
        """Evaluates the restored state, if there was no time for it when that was saved."""
        if not self.owes_evaluation:
            return {}
        found = self.evaluate(step, state, eval_batches, stop)
        if found is None:
            self.end_early(step, stop.agreed())
        self._checkpoints.add_evaluation(step, self._position(step), found)
        return found

    def save(self, step: int, state: Any, evaluation: Mapping[str, float] | None) -> None:
        """Saves a state that is finite; if `evaluation` is None, that it still has to be made."""
        self._look()
        if (name := not_finite(state)) is not None:
            raise self._diverged(f"{name} is not finite", step)
        self._clock.lap("train")
        position = self._position(step, owes_evaluation=evaluation is None)
        self._checkpoints.save(step, state, self._description, position, evaluation or {})
        self._clock.lap("checkpoint")

    def _position(self, step: int, owes_evaluation: bool = False) -> dict[str, Any]:
        """What another process needs, beside the state, to go on after `step`."""
        return {
            "next_batch": step,
            "since_last_line": self._since_last_line.to_json(),
            "guards": self._watch.to_json(),
            "owes_evaluation": owes_evaluation,
            "patience": self._patience.to_json(),
        }

    def _diverged(self, what: str, step: int, advice: str = SLOWER) -> TrainingDiverged:
        self._checkpoints.wait()
        last = self._checkpoints.latest_step()
        kept = (
            "no checkpoint had been saved before"
            if last is None
            else f"the last good checkpoint is step {last} in {self._checkpoints.directory}"
        )
        return TrainingDiverged(f"{what} at step {step}; {kept}; {advice}")

    def end_early(self, step: int, number: int | None) -> NoReturn:
        assert number is not None  # the signal's that ends it
        self._checkpoints.wait()
        saved = f"everything is saved in {self._workdir}"
        if (last := self._checkpoints.latest_step()) != step:
            saved = f"a guard warns, so step {last or 0} before that stays the last that is saved"
        raise Preempted(number, f"after step {step} of {self._steps}; {saved}")

    def end(self, step: int, evaluation: Mapping[str, float]) -> None:
        self._checkpoints.wait()
        self._clock.lap("checkpoint")
        _write_timing(self._workdir, self._started, self._first_step, step, self._clock)
        last = "".join(f", {name} {value:.4g}" for name, value in evaluation.items())
        if step < self._steps:
            last += f"; ends before {self._steps}, with {self._patience.why}"
        took = duration(time.time() - self._started)
        self.progress.message(f"{step} steps in {took}{last}")

    def end_again(self, step: int) -> None:
        """Of a run that had ended, or was killed after its last save: there timing is missing."""
        why = f"all its {step}" if step == self._steps else f"ended after {step}"
        rest = "already" if step == self._steps else f"of {self._steps}, with {self._patience.why}"
        self.progress.message(f"has {why} steps {rest}")
        if not (self._workdir / TIMING_FILE).exists():
            _write_timing(self._workdir, self._started, step, step, self._clock)


def mean_metrics(learner: Any, state: Any, eval_batches: Iterable[Batch]) -> dict[str, float]:
    """The mean of every evaluation metric over all valid rows; empty where there are no batches.

    Over the tokens of all those rows where a batch's metrics are means over its tokens.
    """
    results = []
    for number, batch in enumerate(eval_batches):
        numbers = np.full(len(batch["valid"]), number, np.int32)
        batch = learner.partitioner.place_batch({**batch, "batch_number": numbers})
        with jax.transfer_guard("disallow"):
            results.append(learner.eval_step(state, batch))
    results = jax.device_get(results)
    if not results:
        return {}
    counted = "tokens" if "tokens" in results[0] else "examples"
    counts = np.array([result[counted] for result in results], np.float64)
    return {
        name: float(np.dot([result[name] for result in results], counts) / counts.sum())
        for name in results[0]
        if name not in ("examples", "tokens")
    }


# --- time ----------------------------------------------------------------------------------------


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        phases = ("start", "compile", "train", "evaluate", "checkpoint")
        self.seconds = dict.fromkeys(phases, 0.0)
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        """What passed since the last lap belongs to `phase`."""
        now = time.monotonic()
        self.seconds[phase] += now - self._last
        self._last = now


def _write_timing(
    workdir: epath.Path, started: float, first_step: int, steps: int, clock: _Clock
) -> None:
    """Timing of this attempt; "compile" is the first step, which compiles and then runs."""
    timed_steps = max(steps - first_step - 1, 0)
    rate = timed_steps / clock.seconds["train"] if timed_steps else None
    timing = {
        "started": started,
        "seconds": round(time.time() - started, 3),
        "first_step": first_step,
        "steps": steps,
        "steps_per_second": rate and round(rate, 4),
        **{f"{phase}_seconds": round(value, 3) for phase, value in clock.seconds.items()},
    }
    write_json(workdir / TIMING_FILE, timing)
