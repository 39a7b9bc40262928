"""Findings about solvers: which reach the equilibrium, Theorem 1, speed.

Every function computes one finding from scratch, for a notebook or a report.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.games import families, measures
from nlhf_jax.games.equilibrium import regularized_equilibrium
from nlhf_jax.games.game import Game, stack
from nlhf_jax.games.policy_gradient import IPO, NashEMA, PolicyGradient
from nlhf_jax.games.solvers import (
    Extragradient,
    FictitiousPlay,
    MirrorDescent,
    NashMD,
    ShareOfInverseTau,
    Solver,
    solve,
)
from nlhf_jax.games.theorem import ratios
from nlhf_jax.report import game_plots
from nlhf_jax.report.findings import Finding
from nlhf_jax.report.game_plots import Line, Panel
from nlhf_jax.report.plots import png

_FLOOR = 1e-16  # smaller divergences are drawn there
_RANGE = (_FLOOR / 3, 30)


# --- convergence of all solvers ------------------------------------------------------------------


def mirror_solvers(share: float) -> dict[str, tuple[Solver, str]]:
    """Solvers of `nlhf_jax.games.solvers`: label -> (solver, which of its policies to look at).

    `share` is eta tau of those with a constant rate.
    """
    constant = ShareOfInverseTau(share)
    return {
        "Nash-MD, theorem's rate": (NashMD(), "last"),
        "Nash-MD, constant rate": (NashMD(constant), "last"),
        "self-play (mirror descent)": (MirrorDescent(constant), "last"),
        "self-play, average": (MirrorDescent(constant), "average"),
        "extragradient (EGPO)": (Extragradient(constant), "last"),
        "fictitious play, average": (FictitiousPlay(), "average"),
    }


def gradient_solvers(learning_rate: float, beta: float, decay: float) -> dict:
    """Solvers of `nlhf_jax.games.policy_gradient`, in the same form."""
    return {
        "self-play": (PolicyGradient(learning_rate), "last"),
        f"Nash-MD-PG, β = {beta}": (PolicyGradient(learning_rate, beta), "last"),
        "the same, sampled": (PolicyGradient(learning_rate / 8, beta, samples=64), "last"),
        "best response to μ": (PolicyGradient(learning_rate, 1.0), "last"),
        f"Nash-EMA, decay {decay}": (NashEMA(learning_rate, decay), "last"),
        "online IPO": (IPO(learning_rate), "last"),
        f"IPO-MD, β = {beta}": (IPO(learning_rate, beta), "last"),
    }


def convergence(
    run: str = "notebook",
    seed: int = 1,
    actions: int = 6,
    scale: float = 6.0,
    tau: float = 0.05,
    steps: int = 10_000,
    share: float = 0.1,
    learning_rate: float = 4.0,
    beta: float = 0.125,
    decay: float = 0.9,
) -> Finding:
    """KL to the equilibrium against steps for every solver, on a transitive and a cyclic game.

    Args:
      run: named in the figure.
      seed, actions, scale: of both games, as in `families.random_game`.
      tau: of the regularisation to a random reference.
      steps: of every solver.
      share: eta tau of the mirror-descent solvers with a constant rate.
      learning_rate, beta, decay: of the policy gradients.
    """
    reference = np.random.default_rng(seed).dirichlet(np.full(actions, 3.0))
    families_of_solvers = {
        "mirror steps": mirror_solvers(share),
        "gradients": gradient_solvers(learning_rate, beta, decay),
    }
    kinds = {"transitive game": 0.0, "cyclic game": 1.0}
    games = [
        families.random_game(seed, actions, 1, share_of_cycles, scale, tau=tau, reference=reference)
        for share_of_cycles in kinds.values()
    ]
    # Evenly spread on a logarithmic axis.
    shown = np.unique(np.concatenate([[0], np.geomspace(1, steps, 400).astype(int)]))
    grid: list[list[Panel]] = []
    last: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for family, solvers in families_of_solvers.items():
        lines: dict[str, list[Line]] = {kind: [] for kind in kinds}
        for label, (solver, policy) in solvers.items():
            curves = _kl_curves(stack(games), solver, policy, steps)
            for kind, kl in zip(kinds, curves, strict=True):
                lines[kind].append(Line(label, shown, np.maximum(kl[shown], _FLOOR)))
                last[kind][label] = float(kl[-1])
        grid.append(
            [
                Panel(f"{kind}, {family}", lines[kind], "step", "KL(π*, π) in nats", "xy", _RANGE)
                for kind in kinds
            ]
        )
    return Finding(
        "convergence",
        "Which solver reaches the equilibrium",
        _about_convergence(last, steps),
        png(game_plots.panels(f"KL to the equilibrium, τ = {tau}, {actions} actions", grid, run)),
        {"steps": steps, "kl_after_the_last_step": last},
        [
            ["KL(π*, π) after the last step", *kinds],
            *(
                [label, *(f"{last[kind][label]:.2g}" for kind in kinds)]
                for label in last["cyclic game"]
            ),
        ],
    )


def _kl_curves(games: Game, solver: Solver, policy: str, steps: int) -> np.ndarray:
    """KL(pi*, pi) after every step: `[G, steps + 1]`."""

    def of_game(game):
        equilibrium = regularized_equilibrium(game).log_policy
        path = solve(game, solver, steps, metrics=("kl",), equilibrium=equilibrium)
        return path.metrics[policy]["kl"]

    return np.asarray(jax.jit(jax.vmap(of_game))(games))


def _about_convergence(last: Mapping[str, Mapping[str, float]], steps: int) -> str:
    arrived = {kind: {label for label, kl in of.items() if kl < 1e-6} for kind, of in last.items()}
    transitive, cyclic = arrived.values()
    groups = {
        "on both games": transitive & cyclic,
        "on the transitive game only": transitive - cyclic,
        "on the cyclic game only": cyclic - transitive,
    }
    sentences = [f"Nearer than 1e-6 nats to the equilibrium after {steps:,} steps"]
    sentences += [f"{where}: {', '.join(sorted(of)) or 'none'}" for where, of in groups.items()]
    return (
        "; ".join(sentences)
        + ". A weight β on the reference in the opponent moves the fixed point, so Nash-MD with a"
        " constant rate (β = ητ), Nash-MD-PG and IPO-MD end at a floor at best; at their fixed"
        " point the mixture is the equilibrium at τ / (1 - β)."
    )


# --- cycling -------------------------------------------------------------------------------------


def cycling(run: str = "notebook", tau: float = 0.1, eta: float = 5.0, steps: int = 150) -> Finding:
    """Self-play and Nash-MD on rock-paper-scissors, with the same rate and first policy."""
    game = families.rock_paper_scissors(tau=tau)
    start = measures.normalize(jnp.array([[1.0, 0.0, 0.0]], game.preference.dtype))
    solvers: dict[str, Any] = {"self-play": MirrorDescent(eta), "Nash-MD": NashMD(eta)}
    paths = {name: _path(game, solver, start, steps) for name, solver in solvers.items()}
    averages = np.cumsum(paths["self-play"], axis=0) / np.arange(1, steps + 2)[:, None]
    paths["average of self-play"] = averages
    uniform = np.full(3, 1 / 3)
    distances = {
        name: float(measures.kl(jnp.log(uniform), jnp.log(path[-1])))
        for name, path in paths.items()
    }
    return Finding(
        "cycling",
        "Nash-MD converges where self-play cycles",
        f"Rock-paper-scissors, τ = {tau}, η = {eta}. After {steps} steps KL(π*, π) is "
        + ", ".join(f"{kl:.2g} for {name}" for name, kl in distances.items())
        + ". Self-play answers the policy it has just left, and goes round; Nash-MD answers a"
        " mixture with the reference, which damps the rotation.",
        png(
            game_plots.simplex_paths(
                f"Rock-paper-scissors, τ = {tau}, η = {eta}",
                paths,
                ("rock", "paper", "scissors"),
                uniform,
                run,
            )
        ),
        {"kl_after_the_last_step": distances},
    )


def _path(game: Game, solver: Solver, start: jax.Array, steps: int) -> np.ndarray:
    """The last iterates of one context, `[steps + 1, Y]` probabilities."""

    def step(state, index):
        state = solver.step(game, state, index, jax.random.key(0))
        return state, solver.policies(state)["last"]

    _, rest = jax.lax.scan(step, solver.init(game, start), jnp.arange(steps))
    return np.exp(np.concatenate([start[None], rest]))[:, 0]


# --- theorem 1 -----------------------------------------------------------------------------------


def theorem(
    run: str = "notebook",
    games: int = 300,
    steps: int = 1000,
    sizes: Sequence[int] = (3, 8, 24, 64),
) -> Finding:
    """Theorem 1 along the path of Nash-MD, on random games with tau in [0.01, 1].

    Args:
      run: named in the figure.
      games: of each size.
      steps: T.
      sizes: numbers of actions.
    """
    worst = {}
    for actions in sizes:
        found = jax.vmap(lambda game: ratios(game, steps))(_random_games(actions, games))
        worst[actions] = (np.max(found.one_step, axis=0), np.max(found.last_iterate, axis=0))
    where = np.arange(1, steps + 1)

    def panel(title, index):
        lines = [
            Line(f"{actions} actions", where, pair[index][-steps:])
            for actions, pair in worst.items()
        ]
        lines.append(Line("the bound", where, np.ones(steps)))
        return Panel(title, lines, "step", "largest ratio of the games", "xy", (1e-4, 2))

    tightest = [float(max(pair[index].max() for pair in worst.values())) for index in (0, 1)]
    return Finding(
        "theorem",
        "Theorem 1: measured KL over its bound",
        f"{games * len(sizes):,} random games, τ from 0.01 to 1, {steps:,} steps of Nash-MD with"
        f" the theorem's rate. The largest ratio is {tightest[0]:.3f} of the one-step bound"
        f" (1 - ητ) KL + 2 η², and {tightest[1]:.2g} of 8 / (τ² (T + 1)); by the theorem none"
        " exceeds 1.",
        png(
            game_plots.panels(
                "Nash-MD and the bounds of Theorem 1",
                [[panel("one step", 0), panel("last iterate", 1)]],
                run,
            )
        ),
        {"games": games * len(sizes), "one_step": tightest[0], "last_iterate": tightest[1]},
    )


def _random_games(actions: int, count: int) -> Game:
    """Games of all kinds: tau, reference and intransitivity are random; stacked `[count]`."""
    rng = np.random.default_rng(actions)
    return stack(
        [
            families.random_game(
                seed,
                actions,
                intransitivity=0.0 if actions == 2 else rng.uniform(),
                scale=10 ** rng.uniform(-0.5, 1),
                tau=10 ** rng.uniform(-2, 0),
                reference=rng.dirichlet(np.full(actions, 10 ** rng.uniform(-0.5, 2))) * (1 - 1e-6)
                + 1e-6 / actions,
            )
            for seed in range(count)
        ]
    )


# --- speed ---------------------------------------------------------------------------------------


def speed(
    run: str = "notebook",
    games: int = 1000,
    sizes: Sequence[int] = (16, 64, 128),
    steps: Sequence[int] = (250, 1000),
) -> Finding:
    """Wall time of Nash-MD on many games in one jitted call, float32, without its compilation.

    Args:
      run: named in the figure.
      games: solved at once.
      sizes: numbers of actions.
      steps: of Nash-MD.
    """
    seconds = {}
    for actions in sizes:
        with jax.enable_x64(False):
            batch = families.random_game(0, actions, contexts=games, tau=0.1)
            # Every context becomes a game.
            batch = jax.vmap(lambda p, mu, tau: Game(p[None], mu[None], tau, jnp.ones(1)))(
                batch.preference, batch.log_reference, jnp.full(games, batch.tau)
            )
            seconds[actions] = [_seconds(batch, count) for count in steps]
    table = [
        ["actions", *(f"{count:,} steps" for count in steps)],
        *([f"{actions}", *(f"{value:.3f} s" for value in row)] for actions, row in seconds.items()),
    ]
    lines = [
        Line(f"{actions} actions", np.array(steps), np.array(row))
        for actions, row in seconds.items()
    ]
    device = jax.local_devices()[0]
    return Finding(
        "speed",
        "How long many games take",
        f"{games:,} games in one jitted call on {device.device_kind}: {steps[-1]:,} Nash-MD steps"
        f" of {sizes[-1]} actions take {seconds[sizes[-1]][-1]:.2f} s.",
        png(
            game_plots.panels(
                f"Nash-MD on {games:,} games at once",
                [[Panel(f"{device.device_kind}, float32", lines, "steps", "seconds", "y")]],
                run,
            )
        ),
        {"games": games, "steps": list(steps), "seconds": {str(k): v for k, v in seconds.items()}},
        table,
    )


def _seconds(games: Game, steps: int) -> float:
    """The shorter of two calls."""

    def of_game(game):
        return solve(game, NashMD(), steps).policies["last"]

    # In parts whose matrices stay in a core's cache from step to step.
    program = jax.jit(lambda batch: jax.lax.map(of_game, batch, batch_size=16))
    compiled = program.lower(games).compile()
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(games))
        times.append(time.perf_counter() - begin)
    return min(times)
