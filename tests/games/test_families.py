"""Games from raters, ratings, dice, chance and judges."""

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import families
from nlhf_jax.games.equilibrium import nash_equilibrium


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_a_random_game_has_the_chosen_share_of_cycles(share):
    game = families.random_game(0, 9, contexts=4, intransitivity=share, scale=1.5)
    np.testing.assert_allclose(families.cyclic_share(game), share, atol=1e-12)
    logits = np.log(game.preference / (1 - game.preference))
    if share in (0.0, 1.0):
        np.testing.assert_allclose(np.sum(logits**2, axis=(1, 2)), 1.5**2 * 9 * 8)


def test_ratings_have_no_cyclic_part_and_rock_paper_scissors_has_no_other():
    np.testing.assert_allclose(families.cyclic_share(families.from_elo([0, 1, 5.0])), 0, atol=1e-12)
    soft = families.from_rater_types(
        [0.8, 0.2], [families.rock_paper_scissors().preference[0], np.full((3, 3), 0.5)]
    )
    np.testing.assert_allclose(families.cyclic_share(soft), 1)


def test_raters_with_total_orders_can_be_cyclic_together():
    """Condorcet: a > b > c, b > c > a, c > a > b; each pair is decided 2 to 1."""
    orders = families.ordered([[3, 2, 1], [1, 3, 2], [2, 1, 3]])
    game = families.from_rater_types([1 / 3] * 3, orders)
    np.testing.assert_allclose(game.preference[0], [[1 / 2, 2 / 3, 1 / 3], [1 / 3, 1 / 2, 2 / 3],
                                                    [2 / 3, 1 / 3, 1 / 2]])  # fmt: skip
    np.testing.assert_allclose(nash_equilibrium(game)[0], 1 / 3)


def test_equal_utilities_and_equal_faces_tie():
    np.testing.assert_allclose(families.ordered([1.0, 1.0, 0.0])[:2, :2], 0.5)
    np.testing.assert_allclose(families.from_dice([(1, 2), (2, 3)]).preference[0, 1, 0], 7 / 8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: families.random_game(0, 2), "no cycle among 2"),
        (lambda: families.random_game(0, 4, intransitivity=1.5), "must be in"),
        (lambda: families.from_rater_types([0.5, 0.6], np.full((2, 2, 2), 0.5)), "sum to 1"),
        (lambda: families.cyclic_share(families.rock_paper_scissors()), "no logit"),
    ],
)
def test_impossible_games_are_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
