"""Every solver against what theory says of it: fixed points, rates, cycles and averages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from nlhf_jax.errors import UserError
from nlhf_jax.games import families, measures
from nlhf_jax.games.equilibrium import regularized_equilibrium
from nlhf_jax.games.policy_gradient import (
    IPO,
    NashEMA,
    PolicyGradient,
    exact_gradient,
    ipo_loss,
    sampled_gradient,
    sampled_ipo_loss,
)
from nlhf_jax.games.solvers import (
    Extragradient,
    FictitiousPlay,
    InverseSquareRoot,
    MagneticMirrorDescent,
    MirrorDescent,
    NashMD,
    solve,
)

REFERENCE = (0.4, 0.3, 0.2, 0.1)


@functools.cache
def cyclic_game():
    """Two contexts of four actions, with a reference that is not uniform."""
    return families.random_game(
        1, 4, contexts=2, scale=2.0, tau=0.2, reference=REFERENCE, context_probability=[0.6, 0.4]
    )


def circle(tau):
    """Rock-paper-scissors, whose equilibrium at every tau is uniform; and a start away from it."""
    start = measures.normalize(jnp.array([[0.5, 0.0, 0.0]]))
    return families.rock_paper_scissors(tau=tau), start


def kl_path(game, solver, steps, **settings):
    """KL(pi*, pi_t) of the last iterate: `[steps + 1]`."""
    equilibrium = regularized_equilibrium(game).log_policy
    path = solve(game, solver, steps, metrics=("kl",), equilibrium=equilibrium, **settings)
    return path.metrics["last"]["kl"]


def spectral_radius(game, solver, fixed_point):
    """Of the solver's step at its fixed point: the state's error shrinks by that in a step.

    Shifting all logits of a context changes no policy, so those directions are projected out.
    """
    state = solver.init(game, fixed_point)
    flat, unflatten = ravel_pytree(state)
    project = jnp.eye(game.num_actions) - 1 / game.num_actions
    project = jnp.kron(jnp.eye(flat.size // game.num_actions), project)

    def step(values):
        return ravel_pytree(solver.step(game, unflatten(values), jnp.int32(0), jax.random.key(0)))[
            0
        ]

    return np.max(np.abs(np.linalg.eigvals(project @ jax.jacobian(step)(flat) @ project)))


# --- fixed points --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        MirrorDescent(0.5),
        Extragradient(0.5),
        PolicyGradient(2.0),
        IPO(2.0),
        NashEMA(2.0, decay=0.3),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_the_regularised_equilibrium_is_where_the_last_iterate_goes(solver):
    assert kl_path(cyclic_game(), solver, 3000)[-1] < 1e-12


@pytest.mark.parametrize("beta", [0.125, 0.5])
@pytest.mark.parametrize("solver", [PolicyGradient, IPO], ids=lambda solver: solver.__name__)
def test_the_mixture_at_the_fixed_point_is_the_equilibrium_at_tau_over_one_minus_beta(solver, beta):
    """Calandriello et al. 2024, prop. 5.2; IPO-MD has the same fixed point."""
    game = cyclic_game()
    policies = solve(game, solver(2.0, beta=beta), 4000).policies
    sharper = game.replace(tau=game.tau / (1 - beta))
    wanted = regularized_equilibrium(sharper).log_policy
    np.testing.assert_allclose(jnp.exp(policies["mixture"]), jnp.exp(wanted), rtol=0, atol=1e-6)
    response = measures.best_response(game, policies["mixture"])
    np.testing.assert_allclose(jnp.exp(policies["last"]), jnp.exp(response), rtol=0, atol=1e-6)
    assert measures.divergence(game, policies["last"], policies["mixture"]) > 1e-3


def test_nash_md_with_a_constant_rate_is_nash_md_pg_with_beta_eta_tau():
    game = cyclic_game()
    policies = solve(game, NashMD(0.25 / 0.2), 1000).policies
    mixture = measures.geometric_mixture(policies["last"], game.log_reference, 0.25)
    wanted = regularized_equilibrium(game.replace(tau=game.tau / 0.75)).log_policy
    np.testing.assert_allclose(mixture, wanted, atol=1e-9)


def test_best_response_to_the_reference_is_its_closed_form():
    game = cyclic_game()
    policy = solve(game, PolicyGradient(2.0, beta=1.0), 4000).policies["last"]
    wanted = measures.best_response(game, game.log_reference)
    np.testing.assert_allclose(jnp.exp(policy), jnp.exp(wanted), rtol=0, atol=1e-6)


# --- last iterates -------------------------------------------------------------------------------


def test_nash_md_converges_where_self_play_cycles():
    """Rock-paper-scissors, tau = 0.1, eta = 5, the same first policy."""
    game, start = circle(0.1)
    nash_md = kl_path(game, NashMD(5.0), 200, log_start=start)
    self_play = kl_path(game, MirrorDescent(5.0), 200, log_start=start)
    assert nash_md[-1] < 1e-12
    assert self_play[0] < 0.03
    assert np.min(self_play[100:]) > 0.3
    policies = [start]
    for _ in range(12):
        policies.append(
            solve(game, MirrorDescent(5.0), 25, log_start=policies[-1]).policies["last"]
        )
    assert {int(jnp.argmax(policy)) for policy in policies[4:]} == {0, 1, 2}  # round the circle


@pytest.mark.parametrize(
    "solver",
    [
        NashMD(5.0),
        NashMD(1.0),
        MirrorDescent(1.0),
        MirrorDescent(5.0),
        Extragradient(1.0),
        PolicyGradient(1.0),
        PolicyGradient(1.0, beta=0.25),
        IPO(1.0),
        NashEMA(1.0, decay=0.5),
        NashEMA(1.0, decay=0.9),
        NashEMA(1.0, decay=0.999),
    ],
    ids=str,
)
def test_errors_shrink_or_grow_by_the_spectral_radius(solver):
    """Linear stability: KL is of second order, so it changes by the radius squared in a step."""
    game, _ = circle(0.1)
    fixed_point = game.log_reference
    radius = spectral_radius(game, solver, fixed_point)
    start = fixed_point + 1e-5 * jnp.array([1.0, -1.0, 0.0])
    path = kl_path(game, solver, 300, log_start=start)
    in_reach = (path > 1e-26) & (path < 1e-6)  # of floats, and of the linear theory
    last = np.flatnonzero(in_reach)[-1]
    first = last * 2 // 3
    factor = (path[last] / path[first]) ** (1 / (last - first))
    np.testing.assert_allclose(np.sqrt(factor), radius, atol=0.003)


def test_nash_ema_is_stable_with_a_fast_or_a_slow_average_only():
    """In continuous time: k rate of the average, w rotation, d damping of self-play at pi*.

    s^2 + (k + d) s + k (d - i w) = 0 has no root to the right of 0 iff (k + d)^2 d > w^2 k.
    """
    game, _ = circle(0.1)
    damping, rotation = 0.1 / 3, np.sqrt(3) / 18  # of `exact_gradient` at the uniform policy
    step = 0.01
    for speed in (0.001, 0.003, 0.005, 0.02, 0.1, 0.2, 0.26, 0.4):
        stable = (speed + damping) ** 2 * damping > rotation**2 * speed
        solver = NashEMA(step, decay=1 - speed * step)
        assert (spectral_radius(game, solver, game.log_reference) < 1) == stable, speed


def test_extragradient_converges_linearly_to_the_equilibrium_itself():
    """Where Nash-MD with the same constant rate has a floor."""
    game = cyclic_game()
    extragradient, nash_md = (
        kl_path(game, solver, 400) for solver in (Extragradient(1.0), NashMD(1.0))
    )
    assert extragradient[-1] < 1e-25
    assert nash_md[-1] > 1e-3
    rates = np.log(extragradient[41:121] / extragradient[40:120])
    np.testing.assert_allclose(rates.mean(), np.log(1 - 1.0 * 0.2) * 2, atol=0.15)


def test_with_a_magnet_that_waits_the_last_iterate_finds_the_equilibrium_of_the_plain_game():
    """A magnet that never waits leaves mirror descent without regularisation, which goes round."""
    game = families.random_game(0, 6, scale=3.0, tau=0.1)

    def exploitability(solver):
        path = solve(game, solver, 6000, metrics=("exploitability",), record_every=2000)
        return path.metrics["last"]["exploitability"]

    waits = exploitability(MagneticMirrorDescent(1.0, 100))
    assert np.all(waits[2:] < 0.1 * waits[1:-1]) and waits[-1] < 1e-7  # linearly
    assert exploitability(MagneticMirrorDescent(1.0, 1))[-1] > 0.1
    assert exploitability(MirrorDescent(1.0))[-1] > 0.01  # that of the regularised game is another


# --- averages ------------------------------------------------------------------------------------


def test_the_average_of_self_play_keeps_the_regret_bound_and_the_last_iterate_leaves():
    """Multiplicative weights, gains in [0, 1]: exploitability <= log Y / (eta T) + eta / 8.

    And KL(pi*, pi_t) never falls (Bailey and Piliouras 2018).
    """
    game = families.random_game(0, 6, scale=3.0)
    eta, steps = 0.5, 2000
    path = solve(game, MirrorDescent(eta), steps, metrics=("exploitability",))
    rounds = np.arange(steps + 1) + 1
    bound = np.log(6) / (eta * rounds) + eta / 8
    assert np.all(path.metrics["average"]["exploitability"] <= bound)

    game, start = circle(0.0)
    nash = jnp.log(jnp.full((1, 3), 1 / 3))
    last = solve(game, MirrorDescent(eta), 500, metrics=("kl",), equilibrium=nash, log_start=start)
    assert np.all(np.diff(last.metrics["last"]["kl"]) > 0)


def test_averages_of_the_plain_game_converge_with_falling_rates():
    game, start = circle(0.0)
    solver = MirrorDescent(InverseSquareRoot(1.0))
    path = solve(game, solver, 4000, metrics=("exploitability",), log_start=start)
    assert path.metrics["average"]["exploitability"][-1] < 0.02
    assert path.metrics["last"]["exploitability"][-1] > 0.05


def test_fictitious_play_converges_on_average_and_its_responses_go_round():
    game, start = circle(0.0)
    path = solve(game, FictitiousPlay(), 3000, metrics=("exploitability",), log_start=start)
    average = path.metrics["average"]["exploitability"]
    assert average[-1] < 0.02 < average[100]
    # A pure action in rock-paper-scissors is always beaten.
    np.testing.assert_allclose(path.metrics["last"]["exploitability"][1:], 0.5)
    regular, start = circle(0.1)
    assert kl_path(regular, FictitiousPlay(), 3000, log_start=start)[-1] < 1e-4


# --- gradients -----------------------------------------------------------------------------------


def some_logits(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 4)))


def test_the_exact_gradient_is_that_of_the_objective():
    game, theta = cyclic_game(), some_logits()
    opponent = measures.normalize(some_logits(1))

    def objective(theta):
        policy = measures.normalize(theta)
        return measures.win_rate(game, policy, opponent) - game.tau * measures.divergence(
            game, policy, game.log_reference
        )

    np.testing.assert_allclose(
        exact_gradient(game, theta, opponent), jax.grad(objective)(theta), atol=1e-12
    )


def test_online_ipo_is_four_times_self_play():
    game, theta = cyclic_game(), some_logits()
    policy = measures.normalize(theta)
    np.testing.assert_allclose(
        -jax.grad(ipo_loss, argnums=1)(game, theta, policy),
        4 * exact_gradient(game, theta, policy),
        atol=1e-12,
    )


def test_ipo_is_the_squared_loss_of_labelled_pairs():
    game, theta = cyclic_game(), some_logits()
    sampler = measures.normalize(some_logits(1))

    def squared(theta):
        ratio = measures.normalize(theta) - game.log_reference
        h = ratio[:, :, None] - ratio[:, None, :]
        p, goal = game.preference, 1 / (2 * game.tau)
        loss = p * (h - goal) ** 2 + (1 - p) * (h + goal) ** 2
        pairs = jnp.exp(sampler[:, :, None] + sampler[:, None, :])
        return game.tau * jnp.einsum("x,xij,xij->", game.context_probability, pairs, loss)

    np.testing.assert_allclose(
        jax.grad(ipo_loss, argnums=1)(game, theta, sampler), jax.grad(squared)(theta), atol=1e-12
    )


@pytest.mark.parametrize("kind", ["policy gradient", "IPO"])
def test_sampled_gradients_are_right_on_average(kind):
    """500,000 pairs: the mean is within five of its standard errors, from batches of 1,000."""
    game, theta = cyclic_game(), some_logits()
    opponent = measures.normalize(some_logits(1))
    if kind == "IPO":
        exact = jax.grad(ipo_loss, argnums=1)(game, theta, opponent)
        sampled = jax.grad(sampled_ipo_loss, argnums=1)
    else:
        exact = exact_gradient(game, theta, opponent)
        sampled = sampled_gradient
    keys = jax.random.split(jax.random.key(0), 500)
    draws = jax.jit(jax.vmap(lambda key: sampled(game, theta, opponent, key, 1000)))(keys)
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(500)
    assert np.all(abs(np.mean(draws, axis=0) - exact) < 5 * error)
    assert np.all(error < 0.02 * np.abs(exact).max())


@pytest.mark.parametrize(
    "solver",
    [PolicyGradient(0.5, beta=0.25, samples=64), IPO(0.5, beta=0.25, samples=64)],
    ids=["PolicyGradient", "IPO"],
)
def test_sampled_solvers_come_near_the_fixed_point_of_the_exact_ones(solver):
    game = cyclic_game()
    exact = solve(game, type(solver)(2.0, beta=0.25), 4000).policies["last"]
    policies = solve(game, solver, 3000, seed=1).policies
    assert measures.divergence(game, exact, policies["last"]) < 0.02
    assert measures.divergence(game, exact, policies["average"]) < 0.005
    assert measures.divergence(game, exact, game.log_reference) > 0.05


# --- the interface -------------------------------------------------------------------------------


def test_records_are_the_same_whatever_their_period():
    game = cyclic_game()
    every = solve(game, MirrorDescent(1.0), 12, metrics=("entropy", "exploitability"))
    some = solve(
        game, MirrorDescent(1.0), 12, metrics=("entropy", "exploitability"), record_every=4
    )
    np.testing.assert_array_equal(some.steps, [0, 4, 8, 12])
    for policy in ("last", "average"):
        for metric in ("entropy", "exploitability"):
            np.testing.assert_allclose(
                some.metrics[policy][metric], every.metrics[policy][metric][::4], rtol=1e-12
            )


def test_games_of_different_tau_are_solved_in_one_batch():
    games = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(circle(tau)[0] for tau in (0.1, 0.4)))
    start = circle(0.1)[1]
    together = jax.vmap(lambda game: solve(game, NashMD(), 50, log_start=start).policies["last"])(
        games
    )
    for index, tau in enumerate((0.1, 0.4)):
        alone = solve(circle(tau)[0], NashMD(), 50, log_start=start).policies["last"]
        np.testing.assert_allclose(together[index], alone, rtol=1e-10)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metrics": ("regret",)}, "no metric 'regret'"),
        ({"metrics": ("kl",)}, "needs the argument equilibrium"),
        ({"record_every": 3}, "must divide steps, 10"),
    ],
)
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        solve(cyclic_game(), NashMD(), 10, **settings)
    with pytest.raises(UserError, match="beta is 1.5"):
        PolicyGradient(1.0, beta=1.5)
