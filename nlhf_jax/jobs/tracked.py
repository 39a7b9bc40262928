"""What jobs other than trainings send to a tracked run: tournaments and reports."""

import hashlib
import json
import os

from etils import epath

from nlhf_jax import tracking
from nlhf_jax.errors import UserError, warn
from nlhf_jax.evaluation.results import TournamentResult
from nlhf_jax.tracking import Tracker, Tracking

_SPLIT = "tournament"


def track_tournament(
    asked: Tracking | None, workdir: str | os.PathLike, result: TournamentResult, step: int = 0
) -> None:
    """Sends a tournament's figures of each player, and its samples as a table.

    Args:
      asked: by `tracking.requested`; None sends nothing.
      workdir: the tournament's.
      result: what came of it.
      step: of the checkpoints that played, where one follows another.
    """
    if asked is None:
        return
    tracker = Tracker(asked, workdir)
    figures = _figures(result)  # others where more players have entered since
    digest = hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()[:12]
    tracker.write(step, _SPLIT, figures, known_as=f"{_SPLIT} {digest}")
    if result.samples:
        names = result.policies
        rows = [
            [sample.prompt, "\n".join(sample.references), *(sample.responses[n] for n in names)]
            for sample in result.samples
        ]
        tracker.table("samples", ["prompt", "references", *names], rows)
    tracker.close()


def _figures(result: TournamentResult) -> dict[str, float]:
    found: dict[str, float | None] = {}
    for player in result.players:
        estimates = {
            "win_rate": player.mean_win_rate,
            "win_rate_at_equal_length": player.length_controlled,
        }
        for name, estimate in estimates.items():
            found[f"{name}/{player.name}"] = None if estimate is None else estimate.value
        found[f"kl/{player.name}"] = player.kl
        found[f"words/{player.name}"] = player.mean_words
    for one in result.meta_game or ():
        found[f"nash/{one.name}"] = one.nash.value
        found[f"exploitability/{one.name}"] = one.exploitability.value
    return {name: value for name, value in found.items() if value is not None}


def send_report(workdir: str | os.PathLike, report: epath.Path) -> None:
    """Sends report.html to the tracked run of the directory, if one in it was tracked.

    That of a tournament, where there are several.
    """
    root = epath.Path(workdir)
    places = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    tracked = [path for path in places if (path / tracking.FILE_NAME).exists()]
    played = [path for path in tracked if (path / "tournament.json").exists()]
    for place in (played or tracked)[:1]:
        record = tracking.read_record(place)
        if record is None:
            return
        try:
            asked = tracking.requested(record["kind"], record["project"], {})
        except UserError as error:
            warn(f"the report is not tracked: {error}")
            return
        if asked is not None:
            tracker = Tracker(asked, place)
            tracker.file(report)
            tracker.close()
