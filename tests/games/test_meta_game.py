import numpy as np
import pytest
from scipy import optimize, special

from nlhf_jax.games import game, meta_game
from nlhf_jax.games.equilibrium import nash_equilibrium, regularized_equilibrium
from nlhf_jax.games.meta_game import nash_average

TAU = 1e-7  # as the module states it
RPS = np.array([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]])


def antisymmetric(skew):
    return np.clip(0.5 + (skew - np.swapaxes(skew, -1, -2)) / 2, 0, 1)


def random_rates(rng, count, policies):
    """Win rates of many kinds: decided, near ties, exact ties, copies, votes of a few prompts."""
    any_kind = rng.uniform(-1, 1, (5, count, policies, policies))
    near_ties = any_kind[1] * 0.02
    ties = np.round(any_kind[2] * 2) / 5
    votes = np.round(any_kind[3] * 4) / 8
    source = rng.integers(0, max(2, policies // 2), policies)
    copies = any_kind[4][:, source][:, :, source]
    kinds = [any_kind[0], near_ties, ties, votes]
    return antisymmetric(np.concatenate([*kinds, (copies - np.swapaxes(copies, 1, 2)) / 2]))


def entropy(x):
    return special.entr(x).sum()


def most_even_equilibrium(rate):
    """argmax of the entropy over the polytope `S x <= 0`, by sequential quadratic programming.

    It starts inside the polytope, at the mean of the equilibria that play each policy the most,
    and leaves out the policies that none of them plays: where the entropy's slope is infinite, or
    a constraint broken, the programs may end anywhere.
    """
    skew = rate - 0.5
    policies = len(rate)
    most = [
        optimize.linprog(
            -np.eye(policies)[i],
            A_ub=skew,
            b_ub=np.zeros(policies),
            A_eq=np.ones((1, policies)),
            b_eq=[1],
        ).x
        for i in range(policies)
    ]
    played = np.diag(most) > 1e-9
    skew = skew[:, played]
    found = optimize.minimize(
        lambda x: -entropy(x),
        np.mean(most, axis=0)[played],
        jac=lambda x: np.log(np.maximum(x, 1e-30)) + 1,
        bounds=[(0, 1)] * played.sum(),
        constraints=[
            {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
            {"type": "ineq", "fun": lambda x: -skew @ x, "jac": lambda x: -skew},
        ],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    if not found.success or np.max(skew @ found.x) > 1e-9:
        return None
    exact = np.zeros(policies)
    exact[played] = found.x
    return exact


def test_rock_paper_scissors_is_played_evenly_and_every_throw_is_as_exploitable():
    np.testing.assert_allclose(nash_average(RPS), 1 / 3, atol=1e-9)
    np.testing.assert_allclose(meta_game.exploitability(RPS), 0.4)
    np.testing.assert_array_equal(meta_game.best_response(RPS), [1, 2, 0])


@pytest.mark.parametrize("size", [1, 0.1, 0.01])
def test_a_cycle_is_played_in_proportion_to_the_opposite_win_rates(size):
    a, b, c = 0.3 * size, 0.2 * size, 0.1 * size  # 0 beats 1 by a, 1 beats 2 by b, 2 beats 0 by c
    rate = 0.5 + np.array([[0, a, -c], [-a, 0, b], [c, -b, 0]])
    exact = np.array([b, c, a]) / (a + b + c)
    np.testing.assert_allclose(nash_average(rate), exact, atol=10 * TAU / size)


@pytest.mark.parametrize("policies", [2, 3, 7])
def test_one_that_beats_all_others_is_all_of_the_average_and_not_exploitable(policies):
    rate = antisymmetric(np.random.default_rng(0).uniform(-0.9, 0.9, (policies, policies)))
    rate[1], rate[:, 1] = 0.51, 0.49
    rate[1, 1] = 0.5
    np.testing.assert_allclose(nash_average(rate), np.arange(policies) == 1, atol=1e-12)
    assert meta_game.exploitability(rate)[1] == 0
    assert meta_game.best_response(rate)[1] == 1
    # The definition once more, cell by cell.
    for loser in set(range(policies)) - {1}:
        best = meta_game.best_response(rate)[loser]
        assert rate[best, loser] == rate[:, loser].max() > 0.5
        assert meta_game.exploitability(rate)[loser] == rate[best, loser] - 0.5


def test_of_a_ranking_by_elo_only_the_strongest_is_played():
    strength = np.array([0.0, 1.2, 1.1, -2.0, 1.19])
    rate = special.expit(strength[:, None] - strength)
    mixture = nash_average(rate)
    np.testing.assert_allclose(mixture, np.arange(5) == 1, atol=1e-12)
    np.testing.assert_allclose(meta_game.win_rate_over(rate, mixture), rate[:, 1])


def test_equal_policies_are_played_evenly():
    for policies in (1, 2, 5, 12):
        np.testing.assert_allclose(nash_average(np.full((policies,) * 2, 0.5)), 1 / policies)


def test_the_strongest_share_evenly_if_they_tie():
    rate = np.full((4, 4), 0.5)
    rate[:3, 3], rate[3, :3] = 0.7, 0.3
    np.testing.assert_allclose(nash_average(rate), [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-12)


def test_copies_share_the_mass_of_their_original_and_leave_the_other_masses():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rate = antisymmetric(rng.uniform(-0.5, 0.5, (5, 5)))
        source = np.array([0, 0, 1, 2, 3, 4, 0])
        alone, copied = nash_average(rate), nash_average(rate[source][:, source])
        np.testing.assert_allclose(copied[[2, 3, 4, 5]], alone[1:], atol=2e-5)
        np.testing.assert_allclose(copied[[0, 1, 6]], alone[0] / 3, atol=2e-5)
        assert np.ptp(copied[[0, 1, 6]]) < 1e-8


def test_the_order_of_the_policies_plays_no_part():
    rng = np.random.default_rng(0)
    rate = antisymmetric(rng.uniform(-0.1, 0.1, (9, 9)))
    order = rng.permutation(9)
    turned = nash_average(rate[order][:, order])
    np.testing.assert_allclose(turned, nash_average(rate)[order], atol=1e-8)


@pytest.mark.parametrize("policies", [2, 3, 4, 6, 12, 25])
def test_no_policy_beats_the_average_by_more_than_the_stated_bias(policies):
    rate = random_rates(np.random.default_rng(policies), 300, policies)
    mixture = nash_average(rate)
    np.testing.assert_allclose(mixture.sum(axis=-1), 1)
    assert np.min(mixture) >= 0
    won = meta_game.win_rate_over(rate, mixture)
    assert np.max(won) <= 0.5 + TAU * np.log(policies)
    # Nor does a policy of the mixture lose to it.
    assert np.min(np.where(mixture > 1e-3, won, 0.5)) >= 0.5 - 2e-6


def test_the_average_is_the_one_equilibrium_where_there_is_but_one():
    # As games without ties nearly always have; the linear program finds it exactly.
    rate = antisymmetric(np.random.default_rng(0).uniform(-0.4, 0.4, (200, 5, 5)))
    exact = nash_equilibrium(game.from_matrix(rate))
    np.testing.assert_allclose(nash_average(rate), exact, atol=1e-4)
    assert np.median(np.abs(nash_average(rate) - exact).max(axis=-1)) < 1e-6


@pytest.mark.parametrize("policies", [3, 4, 5])
def test_of_many_equilibria_it_is_the_one_of_largest_entropy(policies):
    rng = np.random.default_rng(policies)
    rates = antisymmetric(rng.integers(-1, 2, (60, policies, policies)) * 0.2)
    gained = []
    for rate, mixture in zip(rates, nash_average(rates), strict=True):
        exact = most_even_equilibrium(rate)
        if exact is not None:  # else the quadratic programs have failed
            np.testing.assert_allclose(mixture, exact, atol=1e-2)
            assert entropy(mixture) > entropy(exact) - 1e-6
            some = nash_equilibrium(game.from_matrix(rate))[0]
            gained.append(entropy(mixture) - entropy(some))
    assert len(gained) > 40
    assert np.min(gained) > -1e-5 and np.sum(np.array(gained) > 0.1) >= 5


def test_the_solver_of_regularised_games_tends_to_it():
    rates = antisymmetric(np.random.default_rng(0).uniform(-0.2, 0.2, (100, 6, 6)))
    rates[50:] = np.round(rates[50:], 1)
    mixture = nash_average(rates)
    distance = []
    for tau in (1e-2, 1e-3, 1e-4):
        equilibrium = regularized_equilibrium(game.from_matrix(rates, tau=tau))
        ended = np.asarray(equilibrium.certificate) < 1e-9
        assert np.mean(ended) > 0.9
        difference = np.abs(np.exp(equilibrium.log_policy) - mixture).max(axis=-1)
        distance.append(np.median(difference[ended]))
    assert distance[2] < 0.2 * distance[1] < 0.1 * distance[0] and distance[2] < 1e-3


def test_batches_are_games_of_their_own():
    rate = random_rates(np.random.default_rng(0), 6, 4).reshape(2, 15, 4, 4)
    batch = nash_average(rate)
    assert batch.shape == (2, 15, 4)
    np.testing.assert_allclose(batch[1, 3], nash_average(rate[1, 3]), atol=1e-9)
    assert meta_game.exploitability(rate).shape == meta_game.best_response(rate).shape == (2, 15, 4)


def test_what_are_no_win_rates_is_refused():
    for rate in (np.ones(3), np.ones((2, 3)), np.ones((0, 0))):
        with pytest.raises(ValueError, match=r"must be \[\.\.\., K, K\]"):
            nash_average(rate)
    for rate in ([[0.5, 0.6], [0.6, 0.5]], [[0.5, 1.2], [-0.2, 0.5]], [[0.5, np.nan]] * 2):
        with pytest.raises(ValueError, match="must be in"):
            nash_average(rate)
