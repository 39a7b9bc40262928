"""A small real judge with a known answer for every tournament it can be asked for."""

from collections.abc import Sequence

import numpy as np

from nlhf_jax.evaluation.judges import PopulationJudge

_BEATS = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}


def rock_paper_scissors(
    prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]
) -> np.ndarray:
    """0.9 for the throw that beats the other, 1/2 for equal or unknown throws."""
    assert len(prompts) == len(firsts) == len(seconds)
    pairs = zip(firsts, seconds, strict=True)
    return np.array([0.5 + 0.4 * ((a, b) in _BEATS) - 0.4 * ((b, a) in _BEATS) for a, b in pairs])


def referee(votes: bool = False, seed: int = 0) -> PopulationJudge:
    return PopulationJudge(rock_paper_scissors, votes=votes, seed=seed)
