"""The training loop: any learner, from the first step (or the last checkpoint) to the end.

Reads top to bottom. The same command continues a run that was killed, and ends with the same
parameters bit for bit: the batches are a function of the step, randomness is a function of (seed,
step), and a checkpoint holds the whole state.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from nlhf_jax.checkpoints import Checkpoints
from nlhf_jax.errors import UserError
from nlhf_jax.files import write_json
from nlhf_jax.metrics import MetricWriter, Progress, duration

TIMING_FILE = "timing.json"


class Batches(Protocol):
    """Training batches as a pure function of the step: nothing to save but a number."""

    def batch(self, step_index: int) -> dict[str, np.ndarray]:
        """The batch of the step with this index, from 0."""


class TrainingDiverged(Exception):
    """The loss or the parameters are NaN or infinite; the last good checkpoint stays."""

    exit_code = 3


class Preempted(Exception):
    """SIGTERM came: the step was finished and saved, and the same command continues."""

    exit_code = 128 + signal.SIGTERM  # As a shell says it; 0 would mean that the run is complete.


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
    eval_batches: Iterable[Mapping[str, np.ndarray]] = (),
    eval_period: int | None = None,
    best_metric: str | None = None,
    best_mode: str = "max",
    data_metrics: Mapping[str, float] | None = None,
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
      data_metrics: numbers about the data (examples, texts cut), written once.

    Returns:
      The final state.

    Raises:
      TrainingDiverged: the loss or the parameters became NaN or infinite.
      Preempted: SIGTERM came; everything is saved.
      UserError: the checkpoints in `workdir` are damaged or belong to another configuration.
    """
    _check_counts(TRAIN_STEPS=steps, log_period=log_period, checkpoint_period=checkpoint_period)

    def is_due(step: int, period: int | None) -> bool:
        return step == steps or (period is not None and step % period == 0)

    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(os.fspath(workdir), keep_checkpoints, best_metric, best_mode)
        stack.callback(checkpoints.close)
        run = _Run(learner, epath.Path(workdir), steps, description, checkpoints, stack)
        state, first_step = run.start()
        if first_step == steps:
            run.progress.message(f"has all its {steps} steps already")
            return state
        run.open_metrics(first_step, data_metrics)
        preempted = stack.enter_context(_sigterm())

        batch = learner.partitioner.place_batch(batches.batch(first_step))
        run.progress.status("compiles its step")
        for step in range(first_step + 1, steps + 1):
            with jax.transfer_guard("disallow"):
                state, metrics = learner.train_step(state, batch)
            # The device works on this step by itself. Meanwhile: the next batch, and a look at
            # the step before, which is the one the host waits for.
            if step < steps:
                batch = learner.partitioner.place_batch(batches.batch(step))
            run.follow(step, metrics)
            if is_due(step, log_period):
                run.log(step)
            stop = preempted.is_set()
            save = stop or is_due(step, checkpoint_period)
            evaluation: dict[str, float] = {}
            if is_due(step, eval_period) or (save and best_metric is not None):
                evaluation = run.evaluate(step, state, eval_batches)
            if save:
                run.save(step, state, evaluation)
            if stop and step < steps:
                run.end_early(step)
        run.end(first_step, evaluation)
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
        workdir: epath.Path,
        steps: int,
        description: Mapping[str, Any],
        checkpoints: Checkpoints,
        stack: contextlib.ExitStack,
    ):
        """`stack` closes what is opened here."""
        self._started, self._clock = time.time(), _Clock()
        self._learner = learner
        self._workdir = workdir
        self._steps = steps
        self._description = description
        self._checkpoints = checkpoints
        self._stack = stack
        self._pending: list[Mapping[str, jax.Array]] = []  # metrics on the device, not logged yet
        self._last_loss: Any = None
        self.progress = Progress(workdir.name, steps)
        stack.callback(self.progress.close)

    def start(self) -> tuple[Any, int]:
        """The state, new or from the latest checkpoint, straight onto the mesh; and its step."""
        self.progress.status("makes or restores its state")
        restored = self._checkpoints.restore_latest(self._learner.abstract_state())
        if restored is None:
            return self._learner.init(), 0
        state, position = restored
        first_step = position["next_batch"]
        if first_step > self._steps:
            raise UserError(
                f"TRAIN_STEPS is {self._steps} but {self._workdir} has been trained for "
                f"{first_step} steps already: raise it, or use another directory"
            )
        return state, first_step

    def open_metrics(self, first_step: int, data_metrics: Mapping[str, float] | None) -> None:
        self._writer = MetricWriter(self._workdir, restored_step=first_step)
        self._stack.callback(self._writer.close)
        if first_step:
            self.progress.message(f"continues at step {first_step} of {self._steps}")
        elif data_metrics:
            self._writer.write(0, "data", data_metrics)
        self._clock.lap("start")

    def follow(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Looks at the step before, which has ended or is waited for, and at this one if first."""
        self._pending.append(metrics)
        if self._last_loss is None:
            jax.block_until_ready(metrics)
            self._clock.lap("compile")
            self.progress.start(step)
        else:
            loss = _check_loss(self._last_loss, step - 1, self._checkpoints)
            self.progress.update(step - 1, loss=loss)
        self._last_loss = metrics["loss"]

    def log(self, step: int) -> None:
        """Writes the means over the steps since the last line."""
        period = jax.device_get(self._pending)
        self._pending.clear()
        means = {
            name: np.mean([one[name] for one in period], dtype=np.float64) for name in period[0]
        }
        self._writer.write(step, "train", means)

    def evaluate(
        self, step: int, state: Any, eval_batches: Iterable[Mapping[str, np.ndarray]]
    ) -> dict[str, float]:
        self._clock.lap("train")
        found = mean_metrics(self._learner, state, eval_batches)
        if found:
            self._writer.write(step, "validation", found)
        self._clock.lap("evaluate")
        return found

    def save(self, step: int, state: Any, evaluation: Mapping[str, float]) -> None:
        """Saves a state that is finite."""
        _check_loss(self._last_loss, step, self._checkpoints)
        _check_finite(state, step, self._checkpoints)
        self._clock.lap("train")
        position = {"next_batch": step}
        self._checkpoints.save(step, state, self._description, position, evaluation)
        self._clock.lap("checkpoint")

    def end_early(self, step: int) -> None:
        self._checkpoints.wait()
        raise Preempted(
            f"stopped by SIGTERM after step {step} of {self._steps}; everything is saved in "
            f"{self._workdir}, and the same command continues"
        )

    def end(self, first_step: int, evaluation: Mapping[str, float]) -> None:
        self._checkpoints.wait()
        self._clock.lap("checkpoint")
        _write_timing(self._workdir, self._started, first_step, self._steps, self._clock)
        last = "".join(f", {name} {value:.4g}" for name, value in evaluation.items())
        took = duration(time.time() - self._started)
        self.progress.message(f"{self._steps} steps in {took}{last}")


def mean_metrics(
    learner: Any, state: Any, eval_batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """The mean of every evaluation metric over all valid rows; empty where there are no batches."""
    results = []
    for batch in eval_batches:
        batch = learner.partitioner.place_batch(batch)
        with jax.transfer_guard("disallow"):
            results.append(learner.eval_step(state, batch))
    results = jax.device_get(results)
    if not results:
        return {}
    examples = np.array([result["examples"] for result in results], np.float64)
    return {
        name: float(np.dot([result[name] for result in results], examples) / examples.sum())
        for name in results[0]
        if name != "examples"
    }


# --- divergence ----------------------------------------------------------------------------------


@jax.jit  # One small program per shape, which all stages of a process share.
def _is_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def _check_finite(state: Any, step: int, checkpoints: Checkpoints) -> None:
    """Raises TrainingDiverged if the state is bad though its last loss, from before it, was not."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    floats = [(k, leaf) for k, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    flags = jax.device_get([_is_finite(leaf) for _, leaf in floats])
    for (key, _), flag in zip(floats, flags, strict=True):
        if not flag:
            name = jax.tree_util.keystr(key, simple=True, separator="/")
            raise _diverged(f"{name} is not finite", step, checkpoints)


def _check_loss(loss: jax.Array, step: int, checkpoints: Checkpoints) -> float:
    value = float(jax.device_get(loss))
    if not math.isfinite(value):
        raise _diverged(f"the loss is {value}", step, checkpoints)
    return value


def _diverged(what: str, step: int, checkpoints: Checkpoints) -> TrainingDiverged:
    checkpoints.wait()
    last = checkpoints.latest_step()
    kept = (
        "no checkpoint had been saved before"
        if last is None
        else f"the last good checkpoint is step {last} in {checkpoints.directory}"
    )
    return TrainingDiverged(
        f"{what} at step {step}; {kept}; try a lower LEARNING_RATE, more warm-up steps or stronger "
        "gradient clipping"
    )


# --- preemption and time -------------------------------------------------------------------------


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets. Python lets only the main thread listen for signals."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


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
    timed_steps = steps - first_step - 1
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
