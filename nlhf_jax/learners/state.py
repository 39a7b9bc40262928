"""What training changes, how it starts, and where its randomness comes from."""

import enum

import flax
import jax
import jax.numpy as jnp
import optax

from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.optimizers import per_layer, state_sharding
from nlhf_jax.sharding import Partitioner


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. A checkpoint of it is enough to continue."""

    step: jax.Array  # int32 scalar: steps taken
    params: PyTree
    opt_state: PyTree
    average: PyTree | None = None  # moving average of the parameters (Nash-EMA), or None


class Purpose(enum.IntEnum):
    """What randomness is for; folded into the key after the seed and the step."""

    INIT = 0
    ROLLOUT = 1
    EVALUATION = 2


def key_for(seed: int, step: jax.Array | int, purpose: Purpose) -> jax.Array:
    """The key of (seed, step, purpose): the same on every device, process and restart."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), int(purpose))


class StateFactory:
    """Builds the sharded `TrainState` of a model and an optimiser."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: optax.GradientTransformation,
        partitioner: Partitioner,
        seed: int,
        initial_params: PyTree | None,
        with_average: bool = False,
    ):
        """`initial_params`: where training starts; None draws random parameters from `seed`."""
        self.optimizer = per_layer(optimizer, model)
        self._partitioner = partitioner
        self._initial_params = initial_params
        self._with_average = with_average

        self._draw = lambda: model.init(key_for(seed, 0, Purpose.INIT))
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
            average=self.params_sharding if with_average else None,
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
        # Copies: the state is donated, so it must not share a buffer with the frozen reference.
        # That one may be stored in bfloat16; training is in float32.
        params = jax.tree.map(lambda x: jnp.copy(x).astype(jnp.float32), params)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=self.optimizer.init(params),
            average=jax.tree.map(jnp.copy, params) if self._with_average else None,
        )

    def __call__(self) -> TrainState:
        if self._initial_params is None:
            return jax.jit(lambda: self._create(self._draw()), out_shardings=self.sharding)()
        params = self._partitioner.place(self._initial_params, self.params_sharding)
        return jax.jit(self._create, out_shardings=self.sharding)(params)
