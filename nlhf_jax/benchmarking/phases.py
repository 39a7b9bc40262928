"""A step in pieces: each phase as a program of its own, made of the same functions as the step."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from nlhf_jax.learners.learner import Learner, accumulate_gradients, update
from nlhf_jax.learners.policy import PolicyLearner, parameter_sets
from nlhf_jax.learners.state import Purpose, key_for
from nlhf_jax.models.language_model import PyTree
from nlhf_jax.planning import phases as planned
from nlhf_jax.planning.phases import Phase
from nlhf_jax.planning.runs import Run
from nlhf_jax.planning.sizes import Mesh
from nlhf_jax.rollout import rollout
from nlhf_jax.sharding import constrain_batch

STEP = "step"
# Our phases, in the step's order, and what makes them up in a plan. The gradient's program reads
# the reference too, whose logits the loss is made of.
_PLANNED = {
    "encode": ("encode",),
    "decode": ("decode",),
    "rating": ("score",),
    "gradient": ("reference", "gradient"),
    "update": ("update",),
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A program, and which values it takes and gives, by their names.

    Attributes:
      name: "step", or a phase: "encode", "decode", "rating", "gradient" or "update".
      function: jitted.
      takes: names of its arguments: "state", "frozen", "batch" or what an earlier piece gives. All
        are arguments, so that the compiler computes nothing with them beforehand.
      gives: names of its results; all leave the program, so that it leaves nothing out.
    """

    name: str
    function: Any
    takes: tuple[str, ...]
    gives: tuple[str, ...]


def step(learner: Learner) -> Piece:
    """The learner's own step. Donates the state."""
    return Piece(
        STEP, learner._jitted_train_step, ("state", "frozen", "batch"), ("state", "metrics")
    )


def pieces(learner: Learner) -> Sequence[Piece]:
    """The phases in order. One after the other, they change the state as the step does."""
    factory, partitioner = learner._factory, learner.partitioner

    def jitted(function: Callable, shardings: Any = None, **settings: Any) -> Any:
        def traced(*arguments: PyTree) -> PyTree:
            with partitioner.activate():
                return function(*arguments)

        return jax.jit(traced, out_shardings=shardings, **settings)

    def gradient(state, frozen, rows):
        def loss(params, rows):
            return learner.loss(params, learner.loss_reads(state, frozen), rows)

        return accumulate_gradients(loss, state.params, rows, learner._microbatches)

    def changed(state, gradient, about_loss):
        new, about = update(state, gradient, about_loss["loss"], factory.optimizer, learner.follow)
        return new, about_loss | about

    if isinstance(learner, PolicyLearner):
        before = _rollout(learner, jitted)
        learned = gradient

        def of_rows(state, frozen, rows, read):
            return learned(state, frozen, rows | read)

        takes: tuple[str, ...] = ("state", "frozen", "rows", "read")
        make_gradient: Callable = of_rows
    else:
        before = []

        def of_batch(state, frozen, batch):
            return gradient(state, frozen, learner.rows(state, frozen, batch)[0])

        takes, make_gradient = ("state", "frozen", "batch"), of_batch
    places = (factory.params_sharding, partitioner.replicated)
    of_state = (factory.sharding, partitioner.replicated)
    return [
        *before,
        Piece("gradient", jitted(make_gradient, places), takes, ("gradient", "metrics")),
        Piece(
            "update",
            jitted(changed, of_state, donate_argnums=0),
            ("state", "gradient", "metrics"),
            ("state", "metrics"),
        ),
    ]


def _rollout(learner: PolicyLearner, jitted: Callable) -> list[Piece]:
    def encode(state, frozen, batch):
        contexts, read = learner.read(parameter_sets(state, frozen), batch, learner.players)
        return constrain_batch(contexts), read

    def decode(state, frozen, batch, contexts):
        key, length = key_for(learner.key, state.step, Purpose.ROLLOUT), learner.max_response_length
        sets = parameter_sets(state, frozen)
        return (rollout(learner.model, learner.players, sets, contexts, key, length),)

    return [
        Piece("encode", jitted(encode), ("state", "frozen", "batch"), ("contexts", "read")),
        Piece("decode", jitted(decode), ("state", "frozen", "batch", "contexts"), ("responses",)),
        Piece(
            "rating",
            jitted(learner.rate),
            ("frozen", "batch", "responses"),
            ("rows", "observed"),
        ),
    ]


def costs(run: Run, mesh: Mesh) -> dict[str, Phase]:
    """What one device does in each of a run's phases, in closed form: see `planning.phases`."""
    counted = {phase.name: phase for phase in planned.phases(run, mesh)}
    found = {}
    for name, parts in _PLANNED.items():
        there = [counted[part] for part in parts if part in counted]
        if there:
            total = there[0]
            for part in there[1:]:
                total += part
            found[name] = dataclasses.replace(total, name=name)
    return found
