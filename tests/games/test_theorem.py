"""Theorem 1 of Munos et al. 2024 along the whole path, on a thousand games."""

import functools

import jax
import numpy as np
import pytest

from nlhf_jax.games.solvers import ShareOfInverseTau
from nlhf_jax.games.theorem import ratios
from tests.games.random_games import random_games

ROUNDING = 1e-9
STEPS = 200


@functools.cache
def games(actions):
    return random_games(actions, 150)


@pytest.mark.parametrize("actions", [2, 3, 5, 8, 16, 32, 64])
def test_the_last_iterate_of_nash_md_keeps_its_bounds(actions):
    found = jax.vmap(lambda game: ratios(game, STEPS))(games(actions))
    assert found.one_step.shape == (150, STEPS)
    assert np.max(found.certificate) < 1e-24
    assert np.max(found.one_step) <= 1 + ROUNDING
    assert np.max(found.last_iterate) <= 1 + ROUNDING
    assert np.max(found.last_iterate) > 1e-3  # something was measured


@pytest.mark.parametrize("share", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("actions", [3, 32])
def test_every_step_keeps_its_bound_with_constant_learning_rates(actions, share):
    def of_game(game):
        return ratios(game, STEPS, ShareOfInverseTau(share)).one_step

    found = jax.vmap(of_game)(games(actions))
    assert np.max(found) <= 1 + ROUNDING
