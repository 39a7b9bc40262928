"""Games that a judge induces on responses."""

import itertools

import numpy as np
import pytest

from nlhf_jax.data.tldr_mini import population
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import response_games
from nlhf_jax.evaluation.judges import PopulationJudge


def test_responses_and_the_population_induce_a_game():
    written = list(itertools.islice(tldr_mini_text.references("test"), 3))
    posts = [post for post, _ in written]
    responses = [[*texts[:2], "food nightmare", "food nightmare"] for _, texts in written]
    judge = PopulationJudge(population.preferences)
    game = response_games.from_judge([post.text for post in posts], responses, judge)
    assert game.preference.shape == (3, 4, 4)
    for x, post in enumerate(posts):
        for i, j in itertools.product(range(4), repeat=2):
            wanted = population.preference(post.text, responses[x][i], responses[x][j])
            np.testing.assert_allclose(game.preference[x, i, j], wanted)
    with pytest.raises(UserError, match="same number"):
        response_games.from_judge(["a", "b"], [["c"], ["d", "e"]], judge)
