"""The game between the styles of `tldr_mini`, version 2, exactly.

Its actions are `population.STYLES`: summaries that are equally free of faults.
"""

import numpy as np

from nlhf_jax.data.tldr_mini.v2 import population, text
from nlhf_jax.games.game import Game, from_matrix


def style_preferences() -> np.ndarray:
    """P(style > style'), float64 `[5, 5]` in the order of `population.STYLES`."""
    table = np.full((len(population.STYLES),) * 2, 0.5)
    for i, one in enumerate(population.STYLES):
        for j, other in enumerate(population.STYLES):
            if i != j:
                votes = zip(population.MASSES, population.ORDERS, strict=True)
                table[i, j] = sum(m for m, order in votes if order.index(one) < order.index(other))
    return table


def style_game(tau: float = 0.0) -> Game:
    """The game at temperature `tau`; its reference is how often people write in each style."""
    return from_matrix(style_preferences(), tau=tau, reference=np.array(text.SHARES))
