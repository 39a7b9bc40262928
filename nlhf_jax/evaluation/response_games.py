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
    if len(responses) != len(prompts) or len({len(texts) for texts in responses}) != 1:
        raise UserError(
            f"{len(prompts)} prompts have {[len(texts) for texts in responses]} responses, but all "
            "must have the same number"
        )
    count = len(responses[0])
    matrix = np.full((len(prompts), count, count), 0.5)
    for i, j in itertools.combinations(range(count), 2):
        one, other = [texts[i] for texts in responses], [texts[j] for texts in responses]
        same = np.array([a == b for a, b in zip(one, other, strict=True)])
        matrix[:, i, j] = np.where(same, 0.5, answers(judge, prompts, one, other))
        matrix[:, j, i] = 1 - matrix[:, i, j]
    return from_matrix(matrix, **regularization)
