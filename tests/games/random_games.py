"""Many random games of one size: several degrees of intransitivity, references and tau."""

import numpy as np

from nlhf_jax.games import families
from nlhf_jax.games.game import Game, stack


def random_games(actions: int, count: int) -> Game:
    """Games with tau from 0.01 to 1, mu from uniform to nearly deterministic, stacked `[count]`."""
    rng = np.random.default_rng(actions)
    games = []
    for number in range(count):
        concentration = (np.inf, 1.0, 0.1)[number % 3]
        games.append(
            families.random_game(
                seed=number,
                actions=actions,
                intransitivity=0.0 if actions == 2 else rng.uniform(),
                scale=(0.5, 2.0, 8.0)[number // 3 % 3],
                tau=10 ** rng.uniform(-2, 0),
                reference=reference(rng, actions, concentration),
            )
        )
    return stack(games)


def reference(rng: np.random.Generator, actions: int, concentration: float) -> np.ndarray:
    """A random distribution, uniform for an infinite concentration."""
    if concentration == np.inf:
        return np.full(actions, 1 / actions)
    drawn = rng.dirichlet(np.full(actions, concentration)) + 1e-9
    return drawn / drawn.sum()
