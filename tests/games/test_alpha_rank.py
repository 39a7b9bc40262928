"""Alpha-rank against OpenSpiel's, and what copies do to it and to others."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.games import bradley_terry, game
from nlhf_jax.games.alpha_rank import alpha_rank
from nlhf_jax.games.meta_game import nash_average

RPS = np.array([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]])
COPIED = [0, 0, 1, 2]  # rock twice


def random_rates(seed: int, policies: int, ties: bool) -> np.ndarray:
    skew = np.random.default_rng(seed).uniform(-1, 1, (policies, policies))
    skew = np.round(skew) if ties else skew
    return 0.5 + (skew - skew.T) / 5


@pytest.mark.parametrize("ties", [False, True])
def test_it_is_open_spiel_s(ties):
    """Whose perturbation is made small; without ties also at a high finite intensity."""
    alpharank = pytest.importorskip(
        "open_spiel.python.egt.alpharank", reason="pip install open_spiel networkx"
    )
    for seed in range(30):
        rate = random_rates(seed, 2 + seed % 6, ties)
        ours = alpha_rank(rate)
        theirs = alpharank.compute([rate], use_inf_alpha=True, inf_alpha_eps=1e-9)[2]
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        if not ties and np.min(np.abs(rate - 0.5) + np.eye(len(rate))) > 0.02:
            theirs = alpharank.compute([rate], m=50, alpha=200)[2]
            np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_the_throws_of_a_cycle_and_equal_policies_are_played_evenly():
    np.testing.assert_allclose(alpha_rank(RPS), 1 / 3)
    np.testing.assert_allclose(alpha_rank(np.full((5, 5), 0.5)), 1 / 5)
    np.testing.assert_allclose(alpha_rank([[0.5]]), 1)


def test_all_mass_is_on_the_top_cycle_however_narrowly_it_wins():
    rate = np.full((5, 5), 0.5)
    for winner, loser in [
        (0, 1),
        (1, 2),
        (2, 0),
        (3, 4),
        *((i, j) for i in range(3) for j in (3, 4)),
    ]:
        rate[winner, loser], rate[loser, winner] = 0.501, 0.499
    np.testing.assert_allclose(alpha_rank(rate), [1 / 3, 1 / 3, 1 / 3, 0, 0], atol=1e-12)
    rate[4], rate[:, 4], rate[4, 4] = 0.501, 0.499, 0.5
    np.testing.assert_allclose(alpha_rank(rate), np.arange(5) == 4, atol=1e-12)


def test_batches_are_games_of_their_own():
    rates = np.stack([random_rates(seed, 4, seed % 2 == 0) for seed in range(6)]).reshape(
        2, 3, 4, 4
    )
    np.testing.assert_allclose(alpha_rank(rates)[1, 2], alpha_rank(rates[1, 2]))


def test_a_copy_leaves_the_nash_masses_of_the_others_and_moves_those_of_the_other_two():
    """The table in docs/games.md: rock-paper-scissors, and with a second rock."""
    copied = RPS[COPIED][:, COPIED]
    np.testing.assert_allclose(nash_average(copied), [1 / 6, 1 / 6, 1 / 3, 1 / 3], atol=1e-6)
    # Scissors is left twice as fast as before; rock and its copy are left for paper only.
    np.testing.assert_allclose(alpha_rank(copied), [1 / 5, 1 / 5, 2 / 5, 1 / 5], atol=1e-12)

    def ratings(rate):
        of = game.from_matrix(rate)
        return np.asarray(
            bradley_terry.fit(of, jnp.log(jnp.full((1, len(rate)), 1 / len(rate)))).reward
        )[0]

    np.testing.assert_allclose(ratings(RPS), 0, atol=1e-9)
    again = ratings(copied)
    assert again[2] > 0.3 and again[3] < -0.3  # paper meets two rocks, and so does scissors
    np.testing.assert_allclose(again[0], again[1], atol=1e-9)


def test_what_are_no_win_rates_is_refused():
    with pytest.raises(ValueError, match="must be in"):
        alpha_rank([[0.5, 0.6], [0.6, 0.5]])
