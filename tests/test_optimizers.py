"""Schedules at chosen steps, and optimisers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.optimizers import adafactor, adamw, per_layer, schedule
from tests import tiny


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"kind": "constant"}, {0: 1.0, 1000: 1.0}),
        ({"kind": "constant", "warmup_steps": 10}, {0: 0.0, 5: 0.5, 10: 1.0, 1000: 1.0}),
        ({"kind": "linear", "decay_steps": 100}, {0: 1.0, 25: 0.75, 100: 0.0, 200: 0.0}),
        (
            {"kind": "linear", "warmup_steps": 20, "decay_steps": 100},
            {0: 0.0, 10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0, 200: 0.0},
        ),
        ({"kind": "cosine", "decay_steps": 100}, {0: 1.0, 50: 0.5, 100: 0.0}),
        (
            {"kind": "cosine", "warmup_steps": 20, "decay_steps": 100},
            {10: 0.5, 20: 1.0, 40: (1 + np.cos(np.pi / 4)) / 2, 60: 0.5, 100: 0.0},
        ),
        (
            {"kind": "rsqrt", "warmup_steps": 100},
            {0: 0.0, 50: 0.5, 100: 1.0, 400: 0.5, 10_000: 0.1},
        ),
    ],
)
def test_schedules(settings, rates):
    rate = schedule(3e-4, **{"kind": "constant", "warmup_steps": 0, "decay_steps": 0} | settings)
    for step, expected in rates.items():
        np.testing.assert_allclose(rate(step), 3e-4 * expected, rtol=1e-5, atol=1e-10)


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(UserError, match="schedule.kind is 'step' but must be one of constant, "):
        schedule(1.0, kind="step", warmup_steps=0, decay_steps=0)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_decay_that_ends_before_it_starts_is_an_error(kind):
    with pytest.raises(UserError, match="schedule.decay_steps is 10 but .* 10 warm-up steps"):
        schedule(1.0, kind=kind, warmup_steps=10, decay_steps=10)


def _one_step(optimizer, params, gradient):
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    return updates, state


def test_adamw_first_steps_by_the_sign_of_the_gradient_and_decays_the_weights():
    params = {"w": jnp.asarray([3.0, -2.0, 1.0])}
    gradient = {"w": jnp.asarray([0.5, -4.0, 1e-2])}
    updates, _ = _one_step(adamw(1e-2, clip_norm=None, weight_decay=0.1), params, gradient)
    expected = -1e-2 * (np.sign(gradient["w"]) + 0.1 * params["w"])
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-4)


def test_adafactor_steps_relative_to_the_size_of_an_array():
    params = {"w": jnp.full((4, 4), 3.0)}
    gradient = {"w": jnp.full((4, 4), -7.0)}
    updates, _ = _one_step(adafactor(1e-2, clip_norm=None), params, gradient)
    np.testing.assert_allclose(updates["w"], 1e-2 * 3.0, rtol=1e-4)
    updates, _ = _one_step(
        adafactor(1e-2, clip_norm=None, multiply_by_parameter_scale=False), params, gradient
    )
    np.testing.assert_allclose(updates["w"], 1e-2, rtol=1e-4)


def test_adafactor_factors_the_second_moment_of_large_matrices():
    params = {"large": jnp.ones((16, 8)), "small": jnp.ones((16, 4))}
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    optimizer = adafactor(
        1e-2, clip_norm=None, min_dim_size_to_factor=8, multiply_by_parameter_scale=False
    )
    updates, _ = _one_step(optimizer, params, gradient)
    # At the first step the moments are this gradient's own (Shazeer and Stern 2018, alg. 4).
    squares = gradient["large"] ** 2
    moment = np.outer(squares.mean(axis=1), squares.mean(axis=0)) / squares.mean()
    direction = gradient["large"] / np.sqrt(moment)
    direction /= max(1.0, np.sqrt(np.mean(direction**2)))
    np.testing.assert_allclose(updates["large"], -1e-2 * direction, rtol=1e-4)
    np.testing.assert_allclose(updates["small"], -1e-2 * np.sign(gradient["small"]), rtol=1e-4)


@pytest.mark.parametrize("make", [adamw, adafactor])
def test_a_gradient_longer_than_the_limit_is_shortened_before_all_else(make):
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    gradient = {"a": jnp.asarray([30.0, -40.0, 0.0]), "b": jnp.zeros((2, 2))}
    shortened = jax.tree.map(lambda x: x * (2.0 / 50.0), gradient)
    clipping, plain = make(1e-2, clip_norm=2.0), make(1e-2, clip_norm=None)
    _, state = _one_step(clipping, params, gradient)
    _, expected = _one_step(plain, params, shortened)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), state[1], expected)
    short = jax.tree.map(lambda x: x / 100, gradient)
    updates, _ = _one_step(clipping, params, short)
    jax.tree.map(np.testing.assert_array_equal, updates, _one_step(plain, params, short)[0])


def test_stacked_layers_are_optimised_as_separate_ones():
    separate = tiny.model(tiny.RATER_VOCABULARY, layers=2)
    stacked = tiny.model(tiny.RATER_VOCABULARY, layers=2, scan_layers=True)
    params, gradient = tiny.params(stacked, 1), tiny.params(stacked, 2)
    # Layers of different sizes: what is relative to one of them differs from the mean of both.
    kernel = gradient["decoder"]["layers"]["mlp"]["wo"]["kernel"]
    gradient["decoder"]["layers"]["mlp"]["wo"]["kernel"] = (
        kernel * np.asarray([1, 50])[:, None, None]
    )

    def step(optimizer, model):
        arguments = (
            (params, gradient) if model is stacked else map(separate.per_layer, (params, gradient))
        )
        return separate.per_layer(_jitted_updates(optimizer, *arguments))

    optimizer = tiny.optimizer()
    expected = step(optimizer, separate)
    found = step(per_layer(optimizer, stacked), stacked)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), found, expected
    )

    naive = step(optimizer, stacked)
    wrong = optax.tree.norm(optax.tree.sub(naive, expected)) / optax.tree.norm(expected)
    assert wrong > 1e-2


def _jitted_updates(optimizer, params, gradient):
    return jax.jit(lambda p, g: _one_step(optimizer, p, g)[0])(params, gradient)
