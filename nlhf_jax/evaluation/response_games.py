"""Games whose actions are sampled responses, as a judge compares them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.judges import Judge, answers
from nlhf_jax.games.game import Game, from_matrix


def from_judge(
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    judge: Judge,
    **regularization: Any,
) -> Game:
    """The game that a judge induces on sampled responses: its actions are the responses.

    Args:
      prompts: X texts, the contexts.
      responses: for each of them Y texts; equal texts tie.
      judge: a preference model, or a population's exact P.
      **regularization: of `from_matrix`.

    Raises:
      UserError: the prompts do not have the same number of responses.
    """
    return from_matrix(preference_matrices(prompts, responses, judge), **regularization)


def preference_matrices(
    prompts: Sequence[str], responses: Sequence[Sequence[str]], judge: Judge
) -> np.ndarray:
    """P(y_i > y_j | x) of Y responses to each of X prompts, as a judge has it: `[X, Y, Y]` float64.

    Equal texts tie. Arguments and errors as of `from_judge`.
    """
    if len(responses) != len(prompts) or len({len(texts) for texts in responses}) != 1:
        raise UserError(
            f"{len(prompts)} prompts have {[len(texts) for texts in responses]} responses, but all "
            "must have the same number"
        )
    count = len(responses[0])
    matrix = np.full((len(prompts), count, count), 0.5)
    pairs = list(itertools.combinations(range(count), 2))
    # In one call: a judge that is a network or a server does best with many questions at once.
    asked = [
        (n, i, j) for n, texts in enumerate(responses) for i, j in pairs if texts[i] != texts[j]
    ]
    if asked:
        found = answers(
            judge,
            [prompts[n] for n, _, _ in asked],
            [responses[n][i] for n, i, _ in asked],
            [responses[n][j] for n, _, j in asked],
        )
        row, one, other = np.array(asked).T
        matrix[row, one, other], matrix[row, other, one] = found, 1 - found
    return matrix
