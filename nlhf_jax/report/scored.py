"""Responses as a policy scores them, which notebooks show with their tokens shaded."""

import dataclasses
import html

import numpy as np

from nlhf_jax.errors import UserError

_STRONGEST = 4.0  # nats; a token's shade is full from there on, as in the report's browser


@dataclasses.dataclass(frozen=True, repr=False)
class Scored:
    """A response, token by token.

    A notebook shows each token shaded by its log ratio: blue is likelier than under the reference,
    orange less likely.

    Attributes:
      pieces: what each of the T tokens reads as; the last is EOS, `</s>`.
      log_probs: of each, float32 `[T]`, in nats.
      reference_log_probs: the same under a reference; None if it was scored without one.
    """

    pieces: list[str]
    log_probs: np.ndarray
    reference_log_probs: np.ndarray | None = None

    @property
    def log_prob(self) -> float:
        """Of the whole response."""
        return float(self.log_probs.sum(dtype=np.float64))

    @property
    def log_ratios(self) -> np.ndarray:
        """log pi/mu of each token, float64 `[T]`, in nats; UserError if there is no reference.

        In expectation over responses of the policy their sum is KL(pi || mu).
        """
        if self.reference_log_probs is None:
            raise UserError("there is no log ratio without a reference: score with reference=...")
        return np.float64(self.log_probs) - self.reference_log_probs

    def __repr__(self) -> str:
        return f"Scored({''.join(self.pieces)!r}, {self._facts()})"

    def _repr_html_(self) -> str:
        if self.reference_log_probs is None:
            text = html.escape("".join(self.pieces))
        else:
            text = "".join(map(_shaded, self.pieces, self.log_ratios))
        return f"<p>{text}<br><small>{self._facts()}</small></p>"

    def _facts(self) -> str:
        facts = f"{len(self.pieces)} tokens, log π {self.log_prob:.2f} nats"
        if self.reference_log_probs is None:
            return facts
        return f"{facts}, log π/μ {self.log_ratios.sum():+.2f} nats"


def _shaded(piece: str, ratio: float) -> str:
    from nlhf_jax.report import plots  # Matplotlib takes a while

    back, ink = plots.cell_colors(0.5 + np.clip(ratio / _STRONGEST, -1, 1) / 2)
    return (
        f'<span title="{ratio:+.2f} nats" style="background:{back};color:{ink};padding:2px 0;'
        f'white-space:pre-wrap">{html.escape(piece)}</span>'
    )
