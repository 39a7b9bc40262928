"""Each checkpoint of a training that goes on plays against a fixed panel as soon as it is there.

The panel's responses and judgements are kept, so a checkpoint costs its own responses and as many
pairs as the panel has players. What comes of it is in `WORKDIR/metrics.jsonl` and TensorBoard at
the checkpoint's step; the tournament and the report are those of the latest.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from etils import epath

from nlhf_jax import processes
from nlhf_jax.checkpoints import DIRECTORY
from nlhf_jax.checkpoints.ours import whole_steps
from nlhf_jax.evaluation.results import REFERENCE, TournamentResult
from nlhf_jax.files import absolute
from nlhf_jax.interruption import Preempted, StopSignal
from nlhf_jax.jobs.match import Match
from nlhf_jax.jobs.responding import Entry
from nlhf_jax.metrics import FILE_NAME, MetricWriter, rows
from nlhf_jax.report.writing import write_report
from nlhf_jax.train import TIMING_FILE

SPLIT = "validation"  # of the metrics, so that they are drawn as a training's are
_NAP = 0.25  # seconds between looks at whether a signal has come


def follow(
    watch: str, match: Match, result: Callable[[int], TournamentResult], seconds: float
) -> None:
    """Lets the checkpoints play until the training has ended.

    The oldest comes first, so that curves grow to the right. One that the training deletes before
    its turn is left out, and that is said.

    Args:
      watch: the training's work directory, which need not be there yet.
      match: with the panel in it.
      result: plays the match and saves what comes of it, by the checkpoint's step.
      seconds: between two looks.

    Raises:
      Preempted: SIGTERM or Ctrl-C came; what is judged is kept.
      UserError: a checkpoint is there and cannot be used.
    """
    directory = absolute(watch)
    path = epath.Path(match.workdir) / FILE_NAME
    last = processes.from_first(lambda: max((row["step"] for row in rows(path)), default=0))
    name = directory.name
    metrics = MetricWriter(match.workdir, last)
    with StopSignal() as stop, contextlib.closing(metrics):
        for step in _new_steps(directory, last, seconds, stop):
            player = f"{name}@{step}"
            checkpoint = directory / DIRECTORY / str(step)
            try:
                match.enter(player, Entry(str(checkpoint)))
            except Exception as error:
                if processes.from_first(checkpoint.exists):
                    raise
                match.progress.message(f"{player} was deleted before its turn ({error})")
                continue
            found = result(step)
            metrics.write(step, SPLIT, measures(found, player))
            if processes.is_first():
                write_report(match.workdir)
            match.progress.message(f"{player}: {_sentence(found, player)}")
            match.leave(player)
        if (number := stop.number) is not None:
            raise Preempted(number, "between two checkpoints")
    match.progress.message(f"{watch} has ended, and all its checkpoints have played")


def _new_steps(directory: epath.Path, last: int, seconds: float, stop: StopSignal) -> Iterator[int]:
    """The steps after `last`, each when it is there, until the training or we are to end."""
    while stop.number is None:
        # Before the steps: the last one is there when this is.
        ended, steps = processes.from_first(
            lambda: [
                (directory / TIMING_FILE).exists(),
                [step for step in whole_steps(directory / DIRECTORY) if step > last],  # noqa: B023
            ]
        )
        if steps:
            last = steps[0]
            yield last
        elif ended:
            return
        else:
            end = time.monotonic() + seconds
            while stop.number is None and time.monotonic() < end:
                time.sleep(min(_NAP, seconds))


def measures(result: TournamentResult, name: str) -> dict[str, float]:
    """A player's figures in a tournament, as metrics."""
    (player,) = (one for one in result.players if one.name == name)
    found: dict[str, float] = {}
    if player.mean_win_rate is not None:
        found["win_rate"] = player.mean_win_rate.value
    for other in result.win_rates.names:
        if other != name:
            found[f"win_rate_over_{other}"] = result.win_rates.between(name, other).value
    for opinion in result.opinions:
        if name in opinion.mean_win_rates:
            found[f"win_rate_by_{opinion.judge}"] = opinion.mean_win_rates[name].value
    if player.kl is not None:
        found["kl"] = player.kl
    found |= {"length_in_words": player.mean_words, "distinct": player.distinct}
    return found | {"empty": player.empty}


def _sentence(result: TournamentResult, name: str) -> str:
    rates = result.win_rates
    said = []
    for other in rates.names:
        if other == name:
            continue
        one = rates.between(name, other)
        what = "the references" if other == REFERENCE else other
        said.append(f"{one} over {what}")
    return ", ".join(said)
