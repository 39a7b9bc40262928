"""Every response of a tournament, packed into the page for its sample browser (`browser.js`).

The packed form is a JSON object, deflated (zlib's format) and in base64::

    players   K names
    numbers   [N] of each prompt its number in the tournament, from 1
    samples   [N] of each prompt [prompt, [references], [K shown], [K texts]]: shown are the pieces
              joined, texts what was judged, null where it is the same
    cuts      [N][K] strings, a character a token: 48 + its length in code points
    ratios    [N][K] strings, a character a token: RATIO_ZERO + its log ratio in RATIO_STEPs
    judges    names
    orders    [judges][K * K] strings, a character a prompt: P_ZERO + 1000 P; empty where i = j

A number that is not known is UNKNOWN.
"""

import base64
import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

RATIO_STEP = 0.025  # nats
RATIO_ZERO = 1040
RATIO_MOST = 1000  # steps, 25 nats; what is beyond is shown as that
P_ZERO = 256
UNKNOWN = 2045  # above every other code, and still two bytes of UTF-8
_CUT_ZERO = 48
_WORD_MARK = "\u2581"  # SentencePiece's, for the space before a word


@dataclasses.dataclass(frozen=True)
class Response:
    """What a player answered to a prompt.

    Attributes:
      text: as it was judged.
      pieces: the tokens' texts, in order; joined they are the text, or nearly (an end of sequence,
        SentencePiece's mark in place of a space). Empty where tokens are not known.
      ratios: of each token log pi(token) / mu(token) in nats, pi being the player as it was
        sampled and mu the reference; NaN where not known. Empty, or as long as `pieces`.
    """

    text: str
    pieces: tuple[str, ...] = ()
    ratios: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Browsed:
    """Every response of a tournament with what every judge said of it.

    Attributes:
      players: K names; the human reference is among them, if it played.
      prompts: N texts.
      references: of each prompt its references, or none.
      responses: player -> N responses.
      orders: judge -> `[N, K, K]`: `[n, i, j]` is P(i > j) in [0, 1] as asked with i shown first,
        NaN where it was not asked. The main judge comes first.

    Raises:
      ValueError: they do not speak of the same prompts and players.
    """

    players: tuple[str, ...]
    prompts: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    responses: Mapping[str, Sequence[Response]]
    orders: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        n, k = len(self.prompts), len(self.players)
        if k < 2 or len(set(self.players)) < k or not n:
            raise ValueError(f"{n} prompts of the players {self.players}: nothing to compare")
        if len(self.references) != n:
            raise ValueError(f"{n} prompts have the references of {len(self.references)}")
        if set(self.responses) != set(self.players):
            raise ValueError(f"responses of {sorted(self.responses)}, players {self.players}")
        for name, responses in self.responses.items():
            if len(responses) != n:
                raise ValueError(f"{name} has {len(responses)} responses to {n} prompts")
            if any(len(one.ratios) not in (0, len(one.pieces)) for one in responses):
                raise ValueError(f"{name} has log ratios of other tokens than its pieces")
        for name, values in self.orders.items():
            if values.shape != (n, k, k):
                raise ValueError(f"{name} judged {values.shape}, of {(n, k, k)}")
            if not np.all(np.isnan(values) | ((values >= 0) & (values <= 1))):
                raise ValueError(f"{name} gave what is no probability")


@dataclasses.dataclass(frozen=True)
class Packed:
    """Base64 that `browser.js` unpacks, of `kept` of the prompts."""

    text: str
    kept: int


def pack(browsed: Browsed, most: int) -> Packed:
    """Packs all prompts, or as many, evenly spread, as `most` bytes hold (at least one)."""
    n = keep = len(browsed.prompts)
    while True:
        text = _pack(browsed, np.arange(keep) * n // keep)
        if len(text) <= most or keep == 1:
            return Packed(text, keep)
        keep = max(1, min(keep - 1, int(0.98 * keep * most / len(text))))


def _pack(browsed: Browsed, prompts: np.ndarray) -> str:
    samples, cuts, ratios = [], [], []
    for n in prompts:
        responses = [browsed.responses[name][n] for name in browsed.players]
        shown = [_pieces(response) for response in responses]
        joined = ["".join(pieces) for pieces in shown]
        pairs = zip(responses, joined, strict=True)
        texts = [None if one.text.strip() == whole.strip() else one.text for one, whole in pairs]
        samples.append([browsed.prompts[n], browsed.references[n], joined, texts])
        cuts.append([_characters([_CUT_ZERO + len(x) for x in pieces]) for pieces in shown])
        ratios.append([_ratios(response.ratios) for response in responses])
    tree = {
        "players": browsed.players,
        "numbers": (prompts + 1).tolist(),
        "samples": samples,
        "cuts": cuts,
        "ratios": ratios,
        "judges": list(browsed.orders),
        "orders": [_orders(values[prompts]) for values in browsed.orders.values()],
    }
    whole = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(whole.encode("utf-8", "replace"), 9)).decode("ascii")


def _pieces(response: Response) -> list[str]:
    """The pieces as they are shown: SentencePiece's marks are spaces, and none comes first."""
    pieces = [piece.replace(_WORD_MARK, " ") for piece in response.pieces]
    if not pieces:
        return [response.text] if response.text else []
    return [pieces[0].removeprefix(" "), *pieces[1:]]


def _ratios(ratios: Sequence[float]) -> str:
    values = np.asarray(ratios, np.float64)
    steps = np.clip(np.rint(np.nan_to_num(values) / RATIO_STEP), -RATIO_MOST, RATIO_MOST)
    return _characters(np.where(np.isnan(values), UNKNOWN, RATIO_ZERO + steps))


def _orders(values: np.ndarray) -> list[str]:
    codes = np.where(np.isnan(values), UNKNOWN, P_ZERO + np.rint(1000 * np.nan_to_num(values)))
    players = range(values.shape[1])
    return [_characters(codes[:, i, j]) if i != j else "" for i in players for j in players]


def _characters(codes: Sequence[int] | np.ndarray) -> str:
    """A character a code; all are below those of surrogates."""
    return np.minimum(codes, 0xD7FF).astype("<u2").tobytes().decode("utf-16-le")
