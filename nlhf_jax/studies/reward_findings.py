"""Findings about Bradley-Terry rewards beside the Nash equilibrium of the same preferences.

Every function computes one finding from scratch, for a notebook or a report.
"""

import jax.numpy as jnp
import numpy as np

from nlhf_jax.data.tldr_mini.v2 import population
from nlhf_jax.data.tldr_mini.v2 import text as tldr_mini_text
from nlhf_jax.data.tldr_mini.v2.games import style_game
from nlhf_jax.evaluation import response_games
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.games import bradley_terry, families, measures
from nlhf_jax.games.equilibrium import nash_equilibrium
from nlhf_jax.games.game import from_matrix, restrict
from nlhf_jax.report import game_plots
from nlhf_jax.report.findings import Finding
from nlhf_jax.report.game_plots import Line, Panel
from nlhf_jax.report.plots import png


def rater_types(run: str = "notebook", points: int = 67) -> Finding:
    """The three rater types of Munos et al. 2024, sec. 3.2, for all eps in [-1/3, 1/3]."""
    grid = np.linspace(-1 / 3, 1 / 3, points)
    equilibria, optima, beaten = [], [], []
    for eps in grid:
        game = families.three_rater_types(eps)
        equilibria.append(nash_equilibrium(game)[0])
        best = bradley_terry.optimum(game, bradley_terry.fit(game, game.log_reference).reward)
        optima.append(np.exp(best)[0])
        beaten.append(float(measures.exploitability(game, best)))
    nash, optimum = np.array(equilibria), np.array(optima)
    # A line through a jump would hide it.
    jumps = np.flatnonzero(np.abs(np.diff(optimum, axis=0)).max(axis=1) > 0.4)
    drawn = optimum.copy()
    drawn[jumps] = np.nan
    names = ("y1", "y2", "y3")

    def of_actions(title, values):
        lines = [Line(name, grid, values[:, index]) for index, name in enumerate(names)]
        return Panel(title, lines, "ε", "probability", ylim=(-0.04, 1.04))

    beats = Panel(
        "how far it is beaten",
        [Line("Bradley-Terry optimum", grid, np.array(beaten)), Line("Nash", grid, 0 * grid)],
        "ε",
        "max P(π' > π) - 1/2",
    )
    errors = np.abs(nash - np.stack([1 / 3 + grid / 2, 1 / 3 + grid / 2, 1 / 3 - grid], axis=1))
    return Finding(
        "rater_types",
        "Three rater types: the equilibrium is continuous, the reward's optimum jumps",
        "The Nash equilibrium is (1/3 + ε/2, 1/3 + ε/2, 1/3 - ε) to within "
        f"{errors.max():.1g}. The Bradley-Terry optimum is a single action: y2 for ε < 0, y1 for"
        f" ε > 0; another policy beats it by up to {max(beaten):.3f}.",
        png(
            game_plots.panels(
                "Three rater types (Munos et al. 2024, sec. 3.2)",
                [
                    [
                        of_actions("Nash equilibrium", nash),
                        of_actions("Bradley-Terry optimum", drawn),
                        beats,
                    ]
                ],
                run,
            )
        ),
        {
            "eps": grid.tolist(),
            "nash": nash.tolist(),
            "bradley_terry_optimum": optimum.tolist(),
            "exploitability_of_the_optimum": beaten,
        },
    )


def sampling_distribution(run: str = "notebook", points: int = 61) -> Finding:
    """What raters are shown decides the reward, and not the equilibrium: rock-paper-scissors.

    And the best rating of a constrained set loses to another policy of the set (ibid., app. A).
    """
    game = families.rock_paper_scissors()
    shares = np.linspace(0.02, 0.96, points)
    samplers = np.stack([shares, (1 - shares) / 3, 2 * (1 - shares) / 3], axis=1)
    rewards = np.array(
        [bradley_terry.fit(game, jnp.log(sampler)[None]).reward[0] for sampler in samplers]
    )
    names = ("rock", "paper", "scissors")
    best = [names[index] for index in rewards.argmax(axis=1)]
    elo, ratings, vertices = families.constrained_elo()
    matrix = restrict(elo, vertices)
    by_rating = vertices[np.argmax(vertices @ ratings)]
    by_wins = nash_equilibrium(from_matrix(matrix))[0] @ vertices
    over = restrict(elo, np.stack([by_wins, by_rating]))[0, 1]
    return Finding(
        "sampling_distribution",
        "The reward depends on the pairs that raters are shown",
        f"The action of largest reward is {best[0]} when rock is shown with {shares[0]:.2f},"
        f" and {best[-1]} with {shares[-1]:.2f}; the equilibrium is uniform throughout. Among the"
        " policies with π(y1) = 2 π(y2) and ratings 0, log 9, log 2, the best rating has "
        f"{np.round(by_rating, 3).tolist()}, the best win rate {np.round(by_wins, 3).tolist()}, and"
        f" the second beats the first with {over:.6f} (50/99 = {50 / 99:.6f}).",
        png(
            game_plots.panels(
                "Rewards fitted to rock-paper-scissors",
                [
                    [
                        Panel(
                            "paper to scissors is 1 to 2",
                            [Line(name, shares, rewards[:, i]) for i, name in enumerate(names)],
                            "probability that rock is shown",
                            "Bradley-Terry reward",
                        )
                    ]
                ],
                run,
            )
        ),
        {"rock_shown": shares.tolist(), "rewards": rewards.tolist(), "win_rate_50_99": over},
    )


def population_games(run: str = "notebook", posts: int = 200, responses: int = 8) -> Finding:
    """Games that summaries of `tldr_mini`'s posts and its population of raters induce.

    Args:
      run: named in the figure.
      posts: how many of the test split.
      responses: summaries that are written for each, as people write them.
    """
    rng = np.random.default_rng(0)
    asked = tldr_mini_text.posts("test")[:posts]
    written = [
        [tldr_mini_text.write_reference(post.facts, rng) for _ in range(responses)]
        for post in asked
    ]
    judge = PopulationJudge(population.preferences)
    game = response_games.from_judge([post.text for post in asked], written, judge)
    fitted = bradley_terry.fit(game, game.log_reference)
    policies = {
        "drawn evenly": game.log_reference,
        "Bradley-Terry optimum": bradley_terry.optimum(game, fitted.reward),
        "Nash": jnp.log(jnp.asarray(nash_equilibrium(game))),
    }
    beaten = {
        name: np.max(measures.preference_over(game, policy), axis=1) - 0.5
        for name, policy in policies.items()
    }
    share = np.arange(1, posts + 1) / posts
    lines = [Line(name, share, np.sort(values)) for name, values in beaten.items()]
    lost = float(np.mean(beaten["Bradley-Terry optimum"] > 1e-9))
    of_styles = zip(population.STYLES, nash_equilibrium(style_game())[0].tolist(), strict=True)
    mixture = ", ".join(f"{style} {share:.2f}" for style, share in of_styles if share > 1e-9)
    return Finding(
        "population_games",
        "Summaries of tldr_mini, judged by its population",
        f"{posts} posts with {responses} written summaries each. The summary of largest"
        f" Bradley-Terry reward is beaten by another one for {lost:.1%} of the posts. On average a"
        " best response beats "
        + ", ".join(f"{name} by {values.mean():.3f}" for name, values in beaten.items())
        + f". Between the styles of summaries, if nobody makes a mistake, Nash is {mixture}.",
        png(
            game_plots.panels(
                "Games between summaries of one post",
                [
                    [
                        Panel(
                            "tldr_mini, test posts",
                            lines,
                            "share of the posts",
                            "max P(y > π) - 1/2",
                        )
                    ]
                ],
                run,
            )
        ),
        {name: float(values.mean()) for name, values in beaten.items()}
        | {"posts_whose_optimum_is_beaten": lost},
    )
