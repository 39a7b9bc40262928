"""What came of a tournament, as tables, JSON and warnings."""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.evaluation.conforming import check_conforms
from nlhf_jax.evaluation.intervals import Estimate, p_values_of_intervals
from nlhf_jax.evaluation.opinions import Opinion
from nlhf_jax.evaluation.statistics import Standing, WinRates
from nlhf_jax.evaluation.text_measures import TextMeasures
from nlhf_jax.evaluation.votes import RaterAccuracy, Reliability
from nlhf_jax.files import write_whole

REFERENCE = "reference"  # the player whose response is one of the prompt's own references
FORMAT = 1
_MATRICES = ("rate", "low", "high", "p")
COLLAPSED_BELOW = 0.5  # share of distinct responses
EMPTY_ABOVE = 0.05  # share of empty responses
UNSURE_BELOW = 0.55  # certainty of a judge
_FEW = 10  # prompts that are the exception


@dataclasses.dataclass(frozen=True)
class PlayerSummary:
    """One row of the per-policy table. None: not measured.

    Attributes:
      mean_win_rate: P(this player beats another policy drawn evenly), over policies other than
        itself and the reference; bootstrap interval over prompts.
      kl, kl_standard_error: KL(pi, SFT) of a response in nats, and the standard error of that mean.
      mean_words, mean_tokens: length of a response.
      distinct: share of different texts among the responses, surrounding white space aside.
      empty: share of responses without a visible character.
      rouge1, rouge2, rougeL: mean F1 in [0, 1] against the best of a prompt's references,
        each measure taking its own best one (without stemming).
      length_controlled: `mean_win_rate` of the length-controlled win rates.
      text: how varied, repetitive and new the responses are.
    """

    name: str
    mean_win_rate: Estimate | None
    kl: float | None
    kl_standard_error: float | None
    mean_words: float
    mean_tokens: float | None
    distinct: float
    empty: float
    rouge1: float | None
    rouge2: float | None
    rougeL: float | None
    length_controlled: Estimate | None = None
    text: TextMeasures | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """One prompt with everybody's response.

    `scores[name]` is the mean of the judge's answers for that response against the other policies'
    (None with fewer than two policies).
    """

    prompt: str
    references: tuple[str, ...]
    responses: dict[str, str]
    scores: dict[str, float] | None


@dataclasses.dataclass(frozen=True)
class Intransitivity:
    """How far the judge is from a ranking.

    Attributes:
      policy_triples: number of triples of policies.
      policy_cycles: those in which each beats the next, in beating order.
      response_triples: number of triples of different responses of three policies to one prompt.
      response_cycles: how many of them are cycles. Both None when votes are counted: single votes
        form cycles by chance.
    """

    policy_triples: int
    policy_cycles: tuple[tuple[str, str, str], ...]
    response_triples: int | None
    response_cycles: int | None

    @property
    def policy_share(self) -> float | None:
        return len(self.policy_cycles) / self.policy_triples if self.policy_triples else None

    @property
    def response_share(self) -> float | None:
        if not self.response_triples or self.response_cycles is None:
            return None
        return self.response_cycles / self.response_triples


@dataclasses.dataclass(frozen=True)
class TournamentResult:
    """What a report says about a tournament; `players` are in the order of `win_rates.names`.

    `raters` are those whose predictions of votes were measured, the population first if it is known
    exactly. `meta_game` has the policies without the reference; None with fewer than two of
    them. `seed` is that of the bootstrap, the samples and the prompts, which are `prompts` of the
    `prompts_in_split`; `temperature` is that of the samples; `judge_certainty`, in [1/2, 1], is the
    mean probability with which the judge prefers one of two different responses, None of votes.
    `judging` names the one of `raters` that is the judge, None where the judge was not measured.
    `opinions` are other judges', of the same responses; `notes` what judges say of how they came to
    their answers, such as what was paid.
    `trained_against_judge` names the policies whose rater in training was this judge, and
    `training_unknown` those whose checkpoints do not say which rater they had. `length_controlled`
    are the win rates at equal length (`evaluation.length_control`). What a file does not
    have, because it is older or the players did not come from checkpoints, is None or empty.
    """

    judge: str
    votes: bool
    prompts: int
    win_rates: WinRates
    players: tuple[PlayerSummary, ...]
    intransitivity: Intransitivity
    samples: tuple[Sample, ...]
    raters: tuple[RaterAccuracy, ...] = ()
    meta_game: tuple[Standing, ...] | None = None
    seed: int | None = None
    prompts_in_split: int | None = None
    temperature: float | None = None
    judge_certainty: float | None = None
    trained_against_judge: tuple[str, ...] = ()
    training_unknown: tuple[str, ...] = ()
    judging: str | None = None
    opinions: tuple[Opinion, ...] = ()
    notes: tuple[str, ...] = ()
    length_controlled: WinRates | None = None

    def with_raters(
        self, raters: tuple[RaterAccuracy, ...], judging: str | None
    ) -> "TournamentResult":
        """The result beside what was measured of raters; what is decided rests on the judge's."""
        found = dataclasses.replace(self, raters=raters, judging=judging)
        if found.judge_accuracy is None:
            return found
        error = abs(found.judge_accuracy.overconfidence or 0.0)
        error = error if found.judge_accuracy.can_tell else 0.5
        rates = dataclasses.replace(self.win_rates, judge_error=error)
        controlled = self.length_controlled and dataclasses.replace(
            self.length_controlled, judge_error=error
        )
        return dataclasses.replace(found, win_rates=rates, length_controlled=controlled)

    @property
    def judge_accuracy(self) -> RaterAccuracy | None:
        """How well the judge predicts votes; None where it was not measured."""
        return next((rater for rater in self.raters if rater.name == self.judging), None)

    @property
    def policies(self) -> tuple[str, ...]:
        """The players without the reference."""
        return tuple(name for name in self.win_rates.names if name != REFERENCE)

    def to_json(self) -> str:
        """The whole result; `from_json` gives it back, every float bit for bit."""
        tree = dataclasses.asdict(self)
        of_opinions = [one["win_rates"] for one in tree["opinions"]]
        tables = (tree["win_rates"], tree["length_controlled"], *of_opinions)
        for rates in filter(None, tables):
            rates |= {field: rates[field].tolist() for field in _MATRICES}
        tree["intransitivity"] |= {
            "policy_share": self.intransitivity.policy_share,
            "response_share": self.intransitivity.response_share,
        }
        return json.dumps({"format": FORMAT, **tree}, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "TournamentResult":
        """Raises ValueError, KeyError or TypeError when the text is not a tournament."""
        tree = json.loads(text)
        if tree["format"] != FORMAT:
            raise ValueError(f"format is {tree['format']}, this version reads {FORMAT}")
        triples = tree["intransitivity"]
        result = cls(
            judge=tree["judge"],
            votes=tree["votes"],
            prompts=tree["prompts"],
            win_rates=_read_win_rates(tree["win_rates"]),
            players=tuple(map(_read_player, tree["players"])),
            intransitivity=Intransitivity(
                policy_triples=triples["policy_triples"],
                policy_cycles=tuple(map(tuple, triples["policy_cycles"])),
                response_triples=triples["response_triples"],
                response_cycles=triples["response_cycles"],
            ),
            samples=tuple(
                Sample(**sample | {"references": tuple(sample["references"])})
                for sample in tree["samples"]
            ),
            raters=_read_raters(tree.get("raters", ())),
            judging=tree.get("judging"),
            opinions=tuple(map(_read_opinion, tree.get("opinions", ()))),
            notes=tuple(tree.get("notes", ())),
            meta_game=_read_meta_game(tree.get("meta_game")),
            seed=tree.get("seed"),
            prompts_in_split=tree.get("prompts_in_split"),
            temperature=tree.get("temperature"),
            judge_certainty=tree.get("judge_certainty"),
            trained_against_judge=tuple(tree.get("trained_against_judge", ())),
            training_unknown=tuple(tree.get("training_unknown", ())),
            length_controlled=_optional(_read_win_rates, tree.get("length_controlled")),
        )
        check_result(result)
        return result

    def save(self, path: str | os.PathLike) -> None:
        """Writes the JSON in place of an earlier one, whole or not at all."""
        write_whole(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TournamentResult":
        """Reads what `save` wrote; raises UserError naming the file if it is something else."""
        try:
            return cls.from_json(epath.Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the tournament {path}: {error.strerror}") from error
        except Exception as error:  # whatever a tree of another kind ends in
            raise UserError(
                f"{path} is not the result of a tournament ({type(error).__name__}: "
                f"{first_line(error)});"
                " run `nlhf evaluate` again"
            ) from error


def warnings(result: TournamentResult) -> list[str]:
    """What a reader must know before trusting the figures, one sentence each."""
    found = []
    by_name = {player.name: player for player in result.players}
    reference = by_name.get(REFERENCE)
    for name in result.policies:
        player = by_name[name]
        if player.distinct < COLLAPSED_BELOW:
            found.append(
                f"{name} has collapsed: only {player.distinct:.1%} of its responses are distinct."
            )
        if player.empty > EMPTY_ABOVE:
            found.append(f"{name} answers with nothing to {player.empty:.1%} of the prompts.")
        if reference and not 1 / 3 <= player.mean_words / max(reference.mean_words, 1e-9) <= 3:
            found.append(
                f"{name} writes {player.mean_words:.1f} words on average where the references have"
                f" {reference.mean_words:.1f}."
            )
    if result.training_unknown:
        found.append(
            f"The checkpoint of {', '.join(result.training_unknown)} does not say against which"
            " rater it was trained; if that was this judge, it is no independent one."
        )
    for rater in result.raters:
        if rater.accuracy.low <= 0.5:
            interval = f"{rater.accuracy.low:.1%} to {rater.accuracy.high:.1%}"
            found.append(
                f"The {rater.name} may be guessing: it agrees with {rater.accuracy.value:.1%} of"
                f" the votes ({interval})."
            )
    if result.prompts < 200:
        found.append(f"Only {result.prompts} prompts were judged, so the intervals are wide.")
    near = _near_an_end(result)
    if near:
        found.append(
            f"Win rates as near to 0 or 1 as {near[0]} rest on few prompts that go the other way:"
            f" their intervals may be too narrow ({len(near)} in all)."
        )
    return found


def _near_an_end(result: TournamentResult) -> list[str]:
    """Averages of which resampling shows too little, since few prompts differ from the others."""
    if result.votes:
        return []
    rates = result.win_rates
    return [
        f"{row} over {column} ({rates.between(row, column).value:.3f})"
        for row, column in itertools.permutations(rates.names, 2)
        if (1 - rates.between(row, column).value) * result.prompts < _FEW
    ]


def check_result(result: TournamentResult) -> None:
    """Raises ValueError unless all parts of a result speak of the same players."""
    check_conforms(result)
    rates, names = result.win_rates, result.win_rates.names
    controlled = result.length_controlled or rates
    if controlled.names != names:
        raise ValueError("the length-controlled win rates are of other players")
    for matrix in (*_ends(rates), *_ends(controlled)):
        if matrix.shape != (len(names),) * 2 or not np.all((matrix >= 0) & (matrix <= 1)):
            raise ValueError(f"the win rates of {len(names)} players are of shape {matrix.shape}")
    if len(set(names)) < len(names) or len(names) < 2:
        raise ValueError("the players are fewer than two, or two have one name")
    if tuple(player.name for player in result.players) != names:
        raise ValueError("the players are not those of the win rates")
    if any(name not in names for cycle in result.intransitivity.policy_cycles for name in cycle):
        raise ValueError("a cycle has a player that did not play")
    for sample in result.samples:
        if sample.scores is not None and sample.scores.keys() != sample.responses.keys():
            raise ValueError("a sample has scores of others than who wrote its responses")


def _read_win_rates(rates: Mapping) -> WinRates:
    matrices = {name: np.array(rates[name], np.float64) for name in _MATRICES if name in rates}
    if "p" not in matrices:  # release 0.1 did not correct for how much it said
        matrices["p"] = p_values_of_intervals(**matrices)
    return WinRates(
        names=tuple(rates["names"]),
        n=rates["n"],
        interval=rates["interval"],
        judge_error=rates.get("judge_error", 0.0),
        **matrices,
    )


def _read_opinion(row: Mapping) -> Opinion:
    estimates = {
        field: {name: Estimate(**one) for name, one in row[field].items()}
        for field in ("mean_win_rates", "gaps")
    }
    rest = {
        "win_rates": _read_win_rates(row["win_rates"]),
        "kappa": _optional(_read_estimate, row["kappa"]),
        "trained_against": tuple(row["trained_against"]),
    }
    return Opinion(**{**row, **estimates, **rest})


def _read_raters(rows: Sequence[Mapping]) -> tuple[RaterAccuracy, ...]:
    read = []
    for row in rows:
        points = tuple(Reliability(**point) for point in row.get("reliability", ()))
        accuracy = Estimate(**row["accuracy"])
        read.append(RaterAccuracy(**{**row, "accuracy": accuracy, "reliability": points}))
    return tuple(read)


def _ends(rates: WinRates) -> tuple[np.ndarray, ...]:
    return rates.rate, rates.low, rates.high


def _optional(read: Callable[[Any], Any], tree: Any) -> Any:
    return None if tree is None else read(tree)


def _read_estimate(tree: Mapping) -> Estimate:
    return Estimate(**tree)


def _read_player(tree: Mapping) -> PlayerSummary:
    estimates = ("mean_win_rate", "length_controlled")
    read = {name: _optional(_read_estimate, tree.get(name)) for name in estimates}
    text = _optional(lambda tree: TextMeasures(**tree), tree.get("text"))
    return PlayerSummary(**{**tree, **read, "text": text})


def _read_meta_game(standings: list[dict] | None) -> tuple[Standing, ...] | None:
    if standings is None:
        return None
    estimates = ("nash", "win_rate_over_nash", "exploitability", "alpha_rank", "bradley_terry")
    return tuple(
        Standing(
            **{**tree, **{name: _optional(_read_estimate, tree.get(name)) for name in estimates}}
        )
        for tree in standings
    )
