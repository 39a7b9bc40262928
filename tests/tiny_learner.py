"""A real learner, as small as one can be: linear regression that obeys the learners' protocol.

Also a program of its own, which the tests start and kill:
`python -m tests.tiny_learner WORKDIR STEPS [KILL_AFTER_STEP MILLISECONDS]`.
"""

import functools
import os
import signal
import sys
import threading
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax.checkpoints import describe
from nlhf_jax.train import training_loop

FEATURES = 64
DESCRIPTION = describe(
    kind="supervised",
    model={"features": FEATURES},
    feature_lengths={"inputs": FEATURES},
    vocabulary_bytes=b"not a vocabulary, but bytes",
)


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    average: Any


class OneDevice:
    """The part of a partitioner that the loop uses."""

    def __init__(self):
        self.sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def place_batch(self, batch):
        return jax.device_put(dict(batch), self.sharding)


class LinearLearner:
    """Least squares by Adam, with noise from (step) as the policy learners have it."""

    kind = "supervised"
    model = None

    def __init__(self, learning_rate=0.1, average=False, hidden=()):
        self.partitioner = OneDevice()
        self._optimizer = optax.adam(learning_rate)
        self._average = average
        self._hidden = hidden
        self.train_step = jax.jit(self._train_step, donate_argnums=0)
        self.eval_step = jax.jit(self._eval_step)

    def init(self):
        @jax.jit
        def create():
            params = {"dense": {"kernel": jnp.zeros((FEATURES,)), "bias": jnp.zeros(())}}
            params |= {f"unused_{i}": jnp.ones(shape) for i, shape in enumerate(self._hidden)}
            average = jax.tree.map(jnp.copy, params) if self._average else None
            return State(jnp.int32(0), params, self._optimizer.init(params), average)

        return create()

    def abstract_state(self):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self.partitioner.sharding
            ),
            jax.eval_shape(self.init),
        )

    def _losses(self, params, batch):
        prediction = batch["inputs"] @ params["dense"]["kernel"] + params["dense"]["bias"]
        return (prediction - batch["targets"]) ** 2

    def _train_step(self, state, batch):
        def loss(params):
            return jnp.mean(self._losses(params, batch))

        value, gradient = jax.value_and_grad(loss)(state.params)
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), state.step), (FEATURES,))
        gradient["dense"]["kernel"] += 1e-3 * noise
        updates, opt_state = self._optimizer.update(gradient, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        average = self._average and jax.tree.map(
            lambda a, p: 0.9 * a + 0.1 * p, state.average, params
        )
        return State(state.step + 1, params, opt_state, average or None), {"loss": value}

    def _eval_step(self, state, batch):
        losses = self._losses(state.params, batch)
        count = jnp.sum(batch["valid"])
        return {"loss": jnp.sum(losses * batch["valid"]) / count, "examples": count}


class LinearBatches:
    """Batches of a linear function with noise, each a function of its index."""

    def __init__(self, bad_step=None):
        self._bad_step = bad_step

    def batch(self, step_index):
        rng = np.random.default_rng(step_index)
        inputs = rng.normal(size=(16, FEATURES)).astype(np.float32)
        targets = inputs.sum(axis=1) + rng.normal(size=16).astype(np.float32)
        if step_index + 1 == self._bad_step:
            targets = np.full_like(targets, np.nan)
        return {"inputs": inputs, "targets": targets}


class KillingBatches(LinearBatches):
    """Kills the process some time after it has been asked for one of the batches."""

    def __init__(self, step, milliseconds):
        super().__init__()
        self._step = step
        self._seconds = milliseconds / 1000

    def batch(self, step_index):
        if step_index == self._step:
            kill = threading.Timer(self._seconds, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()
        return super().batch(step_index)


@functools.cache
def default_learner():
    return LinearLearner()


def run(workdir, steps, batches=None, learner=None, **settings):
    """Trains the linear learner; `settings` replace the loop's."""
    settings = {
        "log_period": 5,
        "checkpoint_period": 10,
        "keep_checkpoints": 2,
        "description": DESCRIPTION,
    } | settings
    return training_loop(
        learner or default_learner(),
        batches or LinearBatches(),
        workdir=workdir,
        steps=steps,
        **settings,
    )


def large_learner():
    """Arrays enough that a save takes a while, and a kill can come in its middle."""
    return LinearLearner(average=True, hidden=[(256, 64)] * 12)


def main():
    workdir, steps, *kill = sys.argv[1:]
    batches = KillingBatches(int(kill[0]), float(kill[1])) if kill else LinearBatches()
    run(workdir, int(steps), batches, large_learner(), checkpoint_period=3)


if __name__ == "__main__":
    main()
