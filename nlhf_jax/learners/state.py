"""What training changes, how it starts, and where its randomness comes from."""

import copy
import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.optimizers import per_layer, state_sharding
from nlhf_jax.sharding import Partitioner


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. A checkpoint of it is enough to continue.

    Attributes:
      step: int32 scalar, steps taken.
      params: the parameters that are trained.
      opt_state: the optimiser's.
      kept: parameter sets that an opponent keeps, by name. In a checkpoint they stand beside
        `params`, each under its own name; `average` is always there, None if nobody keeps one.
    """

    step: jax.Array | Any  # in trees of shapes or shardings, one of those
    params: PyTree
    opt_state: PyTree
    kept: dict[str, PyTree | None]

    def replace(self, **changes: Any) -> "TrainState":
        return dataclasses.replace(self, **changes)

    def tree_flatten_with_keys(self) -> tuple[list[tuple], tuple[str, ...]]:
        children = {"step": self.step, "params": self.params, "opt_state": self.opt_state}
        children |= self.kept
        keyed = [(jax.tree_util.GetAttrKey(name), child) for name, child in children.items()]
        return keyed, tuple(self.kept)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: Sequence[Any]) -> "TrainState":
        step, params, opt_state, *kept = children
        return cls(step, params, opt_state, dict(zip(names, kept, strict=True)))


class Purpose(enum.IntEnum):
    """What randomness is for; folded into the key after the seed and the step."""

    INIT = 0
    ROLLOUT = 1
    EVALUATION = 2
    DROPOUT = 3
    READING = 4
    AGAINST_LOOKAHEAD = 5


def key_for(key: jax.Array, step: jax.Array | int, purpose: Purpose) -> jax.Array:
    """The key of (seed, step, purpose), given the seed's: the same on every device and restart."""
    return jax.random.fold_in(jax.random.fold_in(key, step), int(purpose))


def with_key(learner: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """A step of a learner as a function of state, frozen parameters, batch and a key to draw from.

    As an argument, the key is no part of the compiled program, which all seeds share. Without it
    the key is a constant, that of the learner's seed.
    """

    def step(state: TrainState, frozen: PyTree, batch: PyTree, key: jax.Array | None = None) -> Any:
        drawing = copy.copy(learner)
        drawing.key = jax.random.key(learner.seed) if key is None else key
        return method(drawing, state, frozen, batch)

    step.__name__ = method.__name__
    return step


class StateFactory:
    """Builds the sharded `TrainState` of a model and an optimiser."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: optax.GradientTransformation,
        partitioner: Partitioner,
        seed: int,
        initial_params: Callable[[], PyTree] | None,
        kept: Iterable[str] = (),
    ):
        """`initial_params` reads where training starts; None draws random parameters from `seed`.

        It is called once for each state that is made, and what it returns becomes a part of that
        state: host arrays, or arrays on the mesh that nobody else uses. `kept` names parameter sets
        that start as copies of them.
        """
        self.optimizer = per_layer(optimizer, model)
        self._partitioner = partitioner
        self._initial_params = initial_params
        self._kept = tuple(kept)

        self._draw = lambda: model.init(key_for(jax.random.key(seed), 0, Purpose.INIT))
        shapes = jax.eval_shape(self._draw)
        axes = model.logical_axes()
        self.params_sharding = partitioner.tree_sharding(axes, shapes)
        self.sharding = TrainState(
            step=partitioner.replicated,
            params=self.params_sharding,
            opt_state=state_sharding(
                optimizer,
                partitioner,
                jax.eval_shape(model.per_layer, shapes),
                model.logical_axes(per_layer=True),
            ),
            kept={"average": None} | dict.fromkeys(self._kept, self.params_sharding),
        )

    def abstract(self) -> TrainState:
        """The state's shapes, dtypes and shardings."""
        shapes = jax.eval_shape(lambda: self._create(self._draw()))
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            self.sharding,
        )

    def _create(self, params: PyTree) -> TrainState:
        # Copies, unless they are donated: the state shares no buffer. Training is in float32.
        params = jax.tree.map(lambda x: jnp.copy(x).astype(jnp.float32), params)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=self.optimizer.init(params),
            kept={"average": None} | {name: jax.tree.map(jnp.copy, params) for name in self._kept},
        )

    def random(self) -> TrainState:
        """A state with random parameters, wherever training would start."""
        return jax.jit(lambda: self._create(self._draw()), out_shardings=self.sharding)()

    def __call__(self) -> TrainState:
        if self._initial_params is None:
            return self.random()
        params = self._partitioner.place(self._initial_params(), self.params_sharding)
        return jax.jit(self._create, donate_argnums=0, out_shardings=self.sharding)(params)
