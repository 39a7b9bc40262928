"""What a tournament's directory keeps, for the sample browser of its report."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from nlhf_jax.evaluation import judgements, responses
from nlhf_jax.evaluation.results import REFERENCE, TournamentResult
from nlhf_jax.report.browser import Browsed, Response


def browsed(directory: epath.Path, result: TournamentResult) -> Browsed | None:
    """Every response of a tournament with what every judge said of it.

    None where the directory does not have them all, as of an earlier release, or has those of other
    prompts.
    """
    players = result.win_rates.names
    kept = {name: responses.read_player(directory, name) for name in players}
    prompts: list[str] | None = None
    written: dict[str, Sequence[Response]] = {}
    for name, lines in kept.items():
        if lines is None or len(lines) != result.prompts:
            return None
        asked = [prompt for prompt, _ in lines]
        if prompts not in (None, asked):
            return None
        prompts = asked
        written[name] = [_response(one) for _, one in lines]
    if not prompts or len(players) < 2:
        return None
    references = responses.read_references(directory) if REFERENCE in players else None
    if references is None or len(references) != len(prompts):
        references = [[] for _ in prompts]
    names = [result.judge, *(one.judge for one in result.opinions)]
    orders = {
        name: judgements.read_orders(directory, name, players, len(prompts)) for name in names
    }
    return Browsed(
        tuple(players),
        tuple(prompts),
        tuple(map(tuple, references)),
        written,
        {name: known for name, known in orders.items() if not np.all(np.isnan(known))},
    )


def _response(one: responses.Response) -> Response:
    ratios = one.ratios
    if len(ratios) != len(one.pieces):
        return Response(one.text)
    return Response(one.text, tuple(one.pieces), tuple(ratios))
