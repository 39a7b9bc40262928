"""Optimisers from optax, and how their state is laid out on the mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlhf_jax.errors import UserError
from nlhf_jax.models.language_model import LanguageModel
from nlhf_jax.sharding import Partitioner

PyTree = Any


def schedule(
    learning_rate: float, *, kind: str, warmup_steps: int, decay_steps: int
) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then `constant`, `linear`, `cosine` or `rsqrt`.

    Args:
      learning_rate: the peak.
      kind: what follows the warm-up; `linear` and `cosine` reach 0 at `decay_steps`, `rsqrt` is
        learning_rate * sqrt(warmup_steps / step), T5's pre-training schedule.
      warmup_steps: steps from 0 to the peak.
      decay_steps: the last step, for `linear` and `cosine`.
    """
    warm = max(warmup_steps, 1)
    rest: dict[str, Callable] = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, decay_steps - warmup_steps),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, decay_steps - warmup_steps),
        # During the warm-up, optax asks for a step before 0 and throws the answer away.
        "rsqrt": lambda: lambda step: learning_rate * (warm / (jnp.maximum(step, 0) + warm)) ** 0.5,
    }
    if kind not in rest:
        raise UserError(f"schedule.kind is '{kind}' but must be one of {', '.join(rest)}")
    if kind in ("linear", "cosine") and decay_steps <= warmup_steps:
        raise UserError(
            f"schedule.decay_steps is {decay_steps} but a {kind} schedule with "
            f"{warmup_steps} warm-up steps needs more"
        )
    if warmup_steps == 0:
        return rest[kind]()
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, rest[kind]()], [warmup_steps])


def adafactor(
    learning_rate: float | optax.Schedule,
    *,
    clip_norm: float | None,
    decay_rate: float = 0.8,
    min_dim_size_to_factor: int = 128,
    multiply_by_parameter_scale: bool = True,
) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018) without momentum, as T5X trains with it.

    Args:
      learning_rate: relative to each array's RMS where `multiply_by_parameter_scale`.
      clip_norm: largest global norm of the gradient, before anything else; None for no limit.
      decay_rate: exponent of the second moment's decay, 1 - step^-decay_rate.
      min_dim_size_to_factor: smaller matrices keep a full second moment.
      multiply_by_parameter_scale: step relative to the size of the parameters.
    """
    return _clipped(
        clip_norm,
        optax.adafactor(
            learning_rate,
            min_dim_size_to_factor=min_dim_size_to_factor,
            decay_rate=decay_rate,
            multiply_by_parameter_scale=multiply_by_parameter_scale,
        ),
    )


def adamw(
    learning_rate: float | optax.Schedule,
    *,
    clip_norm: float | None,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019); `clip_norm` as in `adafactor`, None decays nothing."""
    return _clipped(
        clip_norm,
        optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay or 0.0),
    )


def _clipped(clip_norm: float | None, optimizer: optax.GradientTransformation):
    if clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def per_layer(
    optimizer: optax.GradientTransformation, model: LanguageModel
) -> optax.GradientTransformation:
    """Runs an optimiser on per-layer arrays, also when the parameters are stacked along layers.

    Adafactor scales and clips its update per array; over a stacked array that would be over all
    layers at once, and the two layouts would train differently. The state is per layer in both.
    """

    def init(params: PyTree) -> PyTree:
        return optimizer.init(model.per_layer(params))

    def update(updates: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = optimizer.update(model.per_layer(updates), state, model.per_layer(params))
        return model.from_per_layer(updates), state

    return optax.GradientTransformation(init, update)


def choose(condition: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
    """`yes` where the boolean scalar holds, else `no`; the same tree."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)


def update_if(
    finite: jax.Array,
    optimizer: optax.GradientTransformation,
    gradient: PyTree,
    opt_state: PyTree,
    params: PyTree,
) -> tuple[PyTree, PyTree]:
    """The optimiser's update and its new state, or no update and the old one.

    Stateless: the counts and moments are those of a run in which the batch had not been.
    """
    updates, updated = optimizer.update(gradient, opt_state, params)
    nothing = jax.tree.map(lambda x: jnp.full_like(x, -0.0), updates)  # x + -0.0 has x's bits
    return choose(finite, updates, nothing), choose(finite, updated, opt_state)


def state_sharding(
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    shapes: PyTree,
    logical_axes: PyTree,
) -> PyTree:
    """Where each array of the optimiser's state lives: like the parameter it belongs to.

    Args:
      optimizer: see above; its state is that of per-layer parameters.
      partitioner: the mesh.
      shapes: the parameters, or their shapes, per layer.
      logical_axes: tuples of axis names, same tree.
    """

    def place(leaf: jax.ShapeDtypeStruct, parameter: jax.ShapeDtypeStruct, axes: tuple):
        return partitioner.sharding(_state_axes(leaf.shape, parameter.shape, axes), leaf.shape)

    state = jax.eval_shape(optimizer.init, shapes)
    placed = optax.tree_utils.tree_map_params(
        optimizer.init,
        place,
        state,
        shapes,
        logical_axes,
        transform_non_params=lambda leaf: partitioner.replicated,
    )

    # Shapes do not tell which dimension of a square matrix a factor has kept; its name does.
    def place_rows(where: PyTree, state: PyTree) -> PyTree:
        if not isinstance(where, optax.FactoredState):
            return where

        def place(where, leaf: jax.ShapeDtypeStruct, parameter: jax.ShapeDtypeStruct, axes: tuple):
            square = len(set(parameter.shape)) == 1 and leaf.shape == parameter.shape[:-1]
            return partitioner.sharding(axes[:-1], leaf.shape) if square else where

        return where._replace(
            v_row=jax.tree.map(place, where.v_row, state.v_row, shapes, logical_axes)
        )

    is_factored = lambda node: isinstance(node, optax.FactoredState)  # noqa: E731
    return jax.tree.map(place_rows, placed, state, is_leaf=is_factored)


def _state_axes(shape: tuple, parameter: tuple, axes: tuple) -> tuple:
    """The axes of a full moment, of a factored one (a dimension less), or of a placeholder."""
    if shape == parameter:
        return axes
    for i in range(len(parameter)):
        if shape == parameter[:i] + parameter[i + 1 :]:
            return axes[:i] + axes[i + 1 :]
    return (None,) * len(shape)
