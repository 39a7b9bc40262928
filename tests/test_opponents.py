"""Opponents as weights over parameter sets."""

import numpy as np
import pytest

from nlhf_jax import opponents
from nlhf_jax.errors import UserError


def test_each_opponent_is_the_mixture_that_the_paper_names():
    assert opponents.self_play().weights == {"policy": 1.0}
    assert opponents.geometric_mixture(0.25).weights == {"policy": 0.75, "reference": 0.25}
    assert opponents.best_response().weights == {"reference": 1.0}
    assert opponents.moving_average(0.9).weights == {"average": 1.0}


def test_a_moving_average_weighs_the_past_with_its_decay():
    follow = opponents.moving_average(0.75).keeps["average"]
    np.testing.assert_allclose(follow({"w": np.ones(2)}, {"w": np.full(2, 5.0)}, 1)["w"], 2.0)


def test_an_opponent_plays_only_what_there_is():
    with pytest.raises(UserError, match="a weight on the parameter set 'avrage' but keeps none"):
        opponents.Opponent({"avrage": 1.0}, opponents.moving_average(0.5).keeps)
    with pytest.raises(UserError, match="keeps a parameter set 'params': that name is taken"):
        opponents.Opponent({"params": 1.0}, {"params": lambda kept, params, step: kept})


def test_the_ends_of_beta_need_one_network_only():
    assert opponents.geometric_mixture(0.0) == opponents.self_play()
    assert opponents.geometric_mixture(1.0) == opponents.best_response()


@pytest.mark.parametrize("beta", [-0.1, 1.5, float("nan")])
def test_beta_outside_the_unit_interval_is_an_error(beta):
    with pytest.raises(UserError, match=f"BETA is {beta} but"):
        opponents.geometric_mixture(beta)
