"""A tournament of which everything was kept, small or as large as they come."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath

from nlhf_jax.report import contents, html
from nlhf_jax.report.browser import Browsed, Response

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> {{ x }} \u2028 & é 🦆'
JUDGES = ("preference model", "a|<i>judge</i>")


def words(rng: np.random.Generator, n: int) -> str:
    """Made-up words, as often as words are (Zipf): no easier to compress than English."""
    ranks = rng.zipf(1.3, n) % 8000
    return " ".join(_word(int(rank)) for rank in ranks)


def _word(rank: int) -> str:
    letters, rest = "", rank * 7919 + 12345
    for _ in range(2 + rank % 8):
        rest, letter = divmod(rest, 26)
        rest += 31 * rank
        letters += chr(97 + letter)
    return letters


def response(rng: np.random.Generator, tokens: int, measured: bool = True) -> Response:
    """SentencePiece's tokens, a word each, and the end of the sequence."""
    text = words(rng, tokens - 1) if tokens > 1 else ""
    if not measured:
        return Response(text)
    pieces = (*(f"\u2581{word}" for word in text.split()), "</s>")
    return Response(text, pieces, tuple(rng.normal(0, 2, len(pieces)).tolist()))


def browsed(
    players: tuple[str, ...], prompts: int, tokens: tuple[int, int] = (2, 9), words_each: int = 20
) -> Browsed:
    """Random texts, log ratios and probabilities; the player `reference` has no tokens."""
    rng = np.random.default_rng(0)
    orders = rng.random((len(JUDGES), prompts, len(players), len(players))).round(3)
    return Browsed(
        players,
        tuple(f"{words(rng, words_each)} {n}" for n in range(prompts)),
        tuple((words(rng, 8),) * (n % 3) for n in range(prompts)),
        {
            name: [
                response(rng, int(rng.integers(tokens[0], tokens[1])), name != "reference")
                for _ in range(prompts)
            ]
            for name in players
        },
        dict(zip(JUDGES, orders, strict=True)),
    )


def spiced(kept: Browsed) -> Browsed:
    """With an empty response, two alike, hostile texts, and what was not asked or measured."""
    first, second = kept.players[:2]
    responses = {name: list(given) for name, given in kept.responses.items()}
    responses[first][3] = Response(" ", ("</s>",), (1.5,))
    responses[first][4] = responses[second][4] = Response("the same")
    responses[first][5] = Response(HOSTILE, ("\u2581", HOSTILE), (float("nan"), -99.0))
    orders = {judge: values.copy() for judge, values in kept.orders.items()}
    orders[JUDGES[0]][6, 0, 1] = np.nan  # asked in one order
    orders[JUDGES[1]][7] = np.nan  # not asked
    prompts = (*kept.prompts[:5], HOSTILE, *kept.prompts[6:])
    return dataclasses.replace(kept, prompts=prompts, responses=responses, orders=orders)


def page(workdir: Path, kept: Mapping[str, Browsed]) -> str:
    """The page of a work directory whose tournaments, by name, kept that."""
    report = contents.read_report(epath.Path(workdir))
    played = [dataclasses.replace(one, browsed=kept[one.name]) for one in report.tournaments]
    return html.render(dataclasses.replace(report, tournaments=tuple(played)))
