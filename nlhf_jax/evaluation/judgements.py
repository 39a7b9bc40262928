"""What judges said, in `DIRECTORY/judgements/JUDGE/FIRST,SECOND.json`: no pair is judged twice."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from nlhf_jax import processes
from nlhf_jax.evaluation.judges import Judge, both_orders
from nlhf_jax.evaluation.responses import file_name
from nlhf_jax.files import write_whole

DIRECTORY = "judgements"


class Judgements:
    """A judge whose answers are kept.

    Those of an earlier run hold if the texts are the same, and the judge is.

    Args:
      directory: the tournament's.
      name: of the judge, for its directory.
      judge: who is asked what is not there.
      identity: a value of JSON by which the judge is known again; None if it is to be asked in each
        run.
    """

    def __init__(self, directory: epath.Path, name: str, judge: Judge, identity: Any):
        self.name, self.judge = name, judge
        self._place = epath.Path(directory) / DIRECTORY / file_name(name)
        self._identity = identity

    def of(
        self, players: tuple[str, str], prompts: Sequence[str], *responses: Sequence[str]
    ) -> np.ndarray:
        """P(first > second | prompt), `[N]` float64, of two players' responses to N prompts."""
        path = self._place / f"{file_name(players[0])},{file_name(players[1])}.json"
        asked = json.dumps([self._identity, list(prompts), *map(list, responses)])
        fingerprint = hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest()
        kept = None
        if self._identity is not None:
            kept = processes.from_first(lambda: _read(path, fingerprint))
        if kept is None:
            scores, orders = both_orders(self.judge, prompts, *responses)
            kept = {
                "players": list(players),
                "of": fingerprint,
                "scores": scores.tolist(),
                "orders": None if orders is None else orders.tolist(),
            }
            write_whole(path, json.dumps(kept, allow_nan=False) + "\n")
        return np.asarray(kept["scores"], np.float64)


def read_orders(
    directory: epath.Path, judge: str, players: Sequence[str], prompts: int
) -> np.ndarray:
    """What a judge said of each pair in either order, as far as it is kept.

    Returns:
      `[N, K, K]` float64: at n, i, j is P(i > j) with i shown first; NaN where nothing is known.
    """
    found = np.full((prompts, len(players), len(players)), np.nan)
    place = epath.Path(directory) / DIRECTORY / file_name(judge)
    for i, first in enumerate(players):
        for j, second in enumerate(players):
            kept = _read(place / f"{file_name(first)},{file_name(second)}.json")
            if kept is None or len(kept["scores"]) != prompts:
                continue
            orders = kept["orders"] or [[score, score] for score in kept["scores"]]
            found[:, i, j], other = np.asarray(orders, np.float64).T
            found[:, j, i] = 1 - other
    return found


def _read(path: epath.Path, fingerprint: str | None = None) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        scores, orders = kept["scores"], kept["orders"]
        np.asarray(scores, np.float64)
        if orders is not None and np.asarray(orders, np.float64).shape != (len(scores), 2):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return kept if fingerprint in (None, kept.get("of")) else None
