"""Opponents as weights over parameter sets."""

import pytest

from nlhf_jax import opponents
from nlhf_jax.errors import UserError


def test_each_opponent_is_the_mixture_that_the_paper_names():
    assert opponents.POLICY == {"policy": 1.0}
    assert opponents.self_play() == {"policy": 1.0}
    assert opponents.geometric_mixture(0.25) == {"policy": 0.75, "reference": 0.25}
    assert opponents.best_response() == {"reference": 1.0}
    assert opponents.moving_average() == {"average": 1.0}


def test_the_ends_of_beta_need_one_network_only():
    assert opponents.geometric_mixture(0.0) == opponents.self_play()
    assert opponents.geometric_mixture(1.0) == opponents.best_response()


@pytest.mark.parametrize("beta", [-0.1, 1.5, float("nan")])
def test_beta_outside_the_unit_interval_is_an_error(beta):
    with pytest.raises(UserError, match=f"BETA is {beta} but"):
        opponents.geometric_mixture(beta)
