"""One match: players who have answered the same prompts, and judges in their seats."""

import dataclasses
from collections.abc import Sequence

from etils import epath

from nlhf_jax.data.batches import Examples
from nlhf_jax.evaluation import responses
from nlhf_jax.evaluation.responses import Response
from nlhf_jax.evaluation.results import REFERENCE, TournamentResult
from nlhf_jax.evaluation.tournament import Player, drawn_references, play
from nlhf_jax.jobs.judging import Seat
from nlhf_jax.jobs.responding import Entry, Respondents
from nlhf_jax.metrics import Progress

RESULT = "tournament.json"


class Match:
    """Players come and go; all of them are judged.

    Args:
      workdir: where judgements are kept.
      examples: the prompts, with their references.
      respondents: who writes.
      seats: judges, the first of whom decides.
      progress: is told.
      seed: of the bootstrap.
    """

    def __init__(
        self,
        workdir: str,
        examples: Examples,
        respondents: Respondents,
        seats: Sequence[Seat],
        progress: Progress,
        seed: int,
    ):
        self.progress = progress
        self.workdir, self._directory = workdir, epath.Path(workdir)
        self._examples, self._respondents, self._seats = examples, respondents, seats
        self._seed = seed
        self._players: dict[str, Player] = {}
        # Player -> of each judge, whether it has trained this player, or chosen its responses; None
        # if that is not known.
        self._trained: dict[str, list[bool | None]] = {}

    def enter(self, name: str, entry: Entry) -> None:
        """A player writes its responses, unless they are there, and plays from now on."""
        player, network, sampled = self._respondents.write(name, entry)
        self._players[name] = player
        self._trained[name] = [
            seat.chooses_for(entry.rater) or (network is not None and seat.has_trained(network))
            for seat in self._seats
        ]
        done = "has written" if sampled else "had written"
        self.progress.message(f"{name} {done} {len(self._examples)} responses")

    def leave(self, name: str) -> None:
        """Plays no more."""
        del self._players[name], self._trained[name]

    def decide(self) -> TournamentResult:
        """Every pair is judged, unless it was before."""
        prompts = self._examples.texts("inputs")
        references: list[list[str]] | None = self._examples.texts("references")
        if not (references and all(references)):
            references = None
        else:
            drawn = [Response(text) for text in drawn_references(references, self._seed)]
            responses.write_all(self._directory, REFERENCE, prompts, drawn, references)
        status = self.progress.status
        kept = [seat.kept(self.workdir) for seat in self._seats]
        result = play(
            prompts,
            self._players,
            self._seats[0].judge,
            references=references,
            seed=self._seed,
            on_pair=lambda done, pairs: status(f"pair {done} of {pairs} is judged"),
            kept=kept[0],
            others=kept[1:],
        )
        opinions = [
            dataclasses.replace(one, trained_against=self._who(number, True))
            for number, one in enumerate(result.opinions, start=1)
        ]
        return dataclasses.replace(
            result,
            trained_against_judge=self._who(0, True),
            training_unknown=self._who(0, None),
            opinions=tuple(opinions),
            notes=tuple(
                seat.judge.sentence() for seat in self._seats if hasattr(seat.judge, "sentence")
            ),
        )

    def _who(self, seat: int, trained: bool | None) -> tuple[str, ...]:
        return tuple(name for name, by in self._trained.items() if by[seat] is trained)
