"""In which styles policies write, and what beats them."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.data.tldr_mini.v2 import games, population, text
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import tournament
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.games import measures
from nlhf_jax.games.equilibrium import nash_equilibrium
from nlhf_jax.jobs import styles

rng = np.random.default_rng(0)
POSTS = text.posts("test")[:200]


def written(shares) -> list[str]:
    return [
        text.write_summary(post.facts, rng.choice(population.STYLES, p=shares), False, rng)
        for post in POSTS
    ]


def test_shares_are_of_all_responses_and_what_has_no_style_is_in_none():
    rows = [(POSTS[0].text, written([0, 0, 1, 0, 0])[0])] * 3 + [(POSTS[0].text, "no summary")]
    assert styles.shares_of(rows).tolist() == [0, 0, 0.75, 0, 0]
    assert styles.shares_of([]).tolist() == [0] * 5


@pytest.mark.parametrize("seed", range(5))
def test_the_best_style_against_a_policy_is_its_exploitability_in_the_game(seed):
    shares = np.random.default_rng(seed).dirichlet(np.ones(5))
    style, rate = styles.beaten_by(0.9 * shares)  # a tenth in no style
    exact = measures.exploitability(games.style_game(), jnp.log(shares)[None])
    assert rate - 0.5 == pytest.approx(float(exact), abs=1e-5)
    row = games.style_preferences()[population.STYLES.index(style)]
    assert row @ shares == pytest.approx(rate)


def test_no_style_beats_the_nash_mixture():
    assert styles.beaten_by(nash_equilibrium(games.style_game())[0])[1] < 0.5 + 1e-5


@pytest.mark.parametrize(
    ("nash", "said"),
    [
        ([0.3, 0.32, 0.38, 0, 0], "RLHF is beaten by MD, which no other policy beats beyond doubt"),
        ([0, 0, 0, 0, 1], "RLHF is not shown to be beaten by MD, which others beat too"),
    ],
)
def test_the_first_lines_say_who_beats_whom_as_far_as_intervals_allow(nash, said):
    mixtures = {"RLHF": [0, 0, 0, 1, 0], "MD": nash}
    players = {name: Player(written(shares)) for name, shares in mixtures.items()}
    judge = PopulationJudge(population.preferences)
    result = tournament.play([post.text for post in POSTS], players, judge)
    assert styles._headline(result, "RLHF", "MD").startswith(said)


def test_what_a_policy_writes_is_said_with_what_beats_it():
    said = styles._writes("RLHF", np.array([0.04, 0, 0.06, 0.9, 0]))
    rate = games.style_preferences()[0] @ [0.04, 0, 0.06, 0.9, 0]
    assert said == f"RLHF writes 90% plain and 6% warm, and thorough beats that with {rate:.3f}."


def test_a_player_that_did_not_play_is_named(tmp_path):
    players = {name: Player(written([0, 0, 0, 1, 0])) for name in ("one", "other")}
    judge = PopulationJudge(population.preferences)
    result = tournament.play([post.text for post in POSTS], players, judge)
    result.save(tmp_path / "tournament.json")
    with pytest.raises(UserError, match="knows no player 'RLHF'"):
        styles.styles(tmp_path, str(tmp_path), "RLHF", "one")
