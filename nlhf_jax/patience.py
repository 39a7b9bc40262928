"""Early stopping: a training ends when its best evaluation is several evaluations old."""

from collections.abc import Mapping
from typing import Any

from nlhf_jax.errors import UserError


class Patience:
    """Counts evaluations without a better value of a metric; as JSON it outlives its process."""

    def __init__(self, patience: int | None, metric: str | None, mode: str):
        """Arguments as of `train.training_loop`.

        Raises UserError if there is patience without a metric, or none left to begin with.
        """
        if patience is not None and metric is None:
            raise UserError(f"PATIENCE is {patience} but there is no BEST_METRIC to wait for")
        if patience is not None and patience < 1:
            raise UserError(f"PATIENCE is {patience} but counts evaluations: give at least 1")
        self._patience, self._metric, self._mode = patience, metric, mode
        self._best: float | None = None
        self._waited = 0

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Goes on from what `to_json` gave; None was before any evaluation."""
        if saved is not None:
            self._best, self._waited = saved["best"], saved["waited"]

    def observe(self, evaluation: Mapping[str, float]) -> None:
        """Takes in an evaluation; one without the metric is none."""
        value = evaluation.get(self._metric or "")
        if value is None:
            return
        better = self._best is None or (
            value > self._best if self._mode == "max" else value < self._best
        )
        self._best, self._waited = (value, 0) if better else (self._best, self._waited + 1)

    @property
    def is_over(self) -> bool:
        return self._patience is not None and self._waited >= self._patience

    @property
    def why(self) -> str:
        """What has not happened for how long."""
        return f"no better {self._metric} than {self._best:.4g} in {self._waited} evaluations"

    def to_json(self) -> dict[str, Any] | None:
        return None if self._best is None else {"best": self._best, "waited": self._waited}
