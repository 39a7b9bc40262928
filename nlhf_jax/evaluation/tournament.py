"""A tournament: every policy against every other on the same prompts, under one judge."""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rouge_score import rouge_scorer

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import judges, statistics
from nlhf_jax.evaluation.judges import Judge
from nlhf_jax.evaluation.statistics import Estimate, Standing, WinRates
from nlhf_jax.evaluation.votes import RaterAccuracy
from nlhf_jax.files import write_whole

REFERENCE = "reference"  # the player whose response is one of the prompt's own references
FORMAT = 1
COLLAPSED_BELOW = 0.5  # share of distinct responses
EMPTY_ABOVE = 0.05  # share of empty responses
_ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclasses.dataclass(frozen=True)
class Player:
    """What one policy answered.

    Attributes:
      responses: one sampled text a prompt.
      log_ratios: `[N]` log(pi(y|x) / mu(y|x)) of those responses, in nats, mu being the SFT policy;
        their mean estimates KL(pi, mu). None if not known.
      token_counts: `[N]` lengths of the responses in tokens, EOS included. None if not known.
    """

    responses: Sequence[str]
    log_ratios: np.ndarray | None = None
    token_counts: np.ndarray | None = None


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
        return self.response_cycles / self.response_triples if self.response_triples else None


@dataclasses.dataclass(frozen=True)
class TournamentResult:
    """What a report says about a tournament; `players` are in the order of `win_rates.names`.

    `raters` are those whose predictions of votes were measured, the population first if it is known
    exactly. `meta_game` has the policies without the reference; None with fewer than two of
    them, and in files from before it was measured.
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

    @property
    def policies(self) -> tuple[str, ...]:
        """The players without the reference."""
        return tuple(name for name in self.win_rates.names if name != REFERENCE)

    def to_json(self) -> str:
        """The whole result; `from_json` gives it back, every float bit for bit."""
        tree = dataclasses.asdict(self)
        for field in ("rate", "low", "high"):
            tree["win_rates"][field] = tree["win_rates"][field].tolist()
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
        rates = tree["win_rates"]
        matrices = {name: np.array(rates[name], np.float64) for name in ("rate", "low", "high")}
        triples = tree["intransitivity"]
        return cls(
            judge=tree["judge"],
            votes=tree["votes"],
            prompts=tree["prompts"],
            win_rates=WinRates(
                names=tuple(rates["names"]), n=rates["n"], interval=rates["interval"], **matrices
            ),
            players=tuple(
                PlayerSummary(
                    **player
                    | {
                        "mean_win_rate": player["mean_win_rate"]
                        and Estimate(**player["mean_win_rate"])
                    }
                )
                for player in tree["players"]
            ),
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
            raters=tuple(
                RaterAccuracy(**rater | {"accuracy": Estimate(**rater["accuracy"])})
                for rater in tree.get("raters", ())
            ),
            meta_game=_read_meta_game(tree.get("meta_game")),
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the JSON in place of an earlier one, whole or not at all."""
        write_whole(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TournamentResult":
        """Reads what `save` wrote; raises UserError naming the file if it is something else."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the tournament {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not the result of a tournament ({type(error).__name__}: {error});"
                " run `nlhf evaluate` again"
            ) from error


def play(
    prompts: Sequence[str],
    players: Mapping[str, Player],
    judge: Judge,
    references: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    samples: int = 10,
    on_pair: Callable[[int, int], None] | None = None,
) -> TournamentResult:
    """Judges every pair of players on every prompt.

    With references there is one more player, `reference`: a writer who hands in one of the prompt's
    references, drawn evenly (with `seed`).

    Args:
      prompts: N texts.
      players: policy name -> its responses to these prompts.
      judge: who compares; each pair is asked once, in the order of `players`.
      references: for every prompt at least one human response, or None.
      seed: of the bootstrap and of the drawn references.
      samples: how many prompts to keep with their responses, spread evenly over the prompts.
      on_pair: called with (pairs judged, pairs in all) after each pair, for progress.

    Raises:
      UserError: no prompts, fewer than two players, a policy named `reference`, or a prompt without
        references.
    """
    _check(prompts, players, references)
    policies = tuple(players)
    responses = {name: list(player.responses) for name, player in players.items()}
    if references is not None:
        pick = np.random.default_rng(seed).random(len(prompts))
        responses[REFERENCE] = [
            texts[int(u * len(texts))] for u, texts in zip(pick, references, strict=True)
        ]
    names = tuple(responses)
    if len(names) < 2:
        raise UserError(f"a tournament needs two players or more, got {', '.join(names) or 'none'}")

    scores = _judge_all_pairs(prompts, responses, judge, on_pair)
    rates = statistics.win_rates(names, scores, judge.votes, seed)
    against_policies = _scores_against_policies(scores, len(policies))
    means = None if against_policies is None else against_policies.T
    rouge = _Rouge()
    return TournamentResult(
        judge=judge.name,
        votes=bool(judge.votes),
        prompts=len(prompts),
        win_rates=rates,
        players=tuple(
            _summary(
                name,
                players.get(name, Player(responses[name])),
                None if means is None else statistics.bootstrap_mean(means[index], seed),
                references if name != REFERENCE else None,
                rouge,
            )
            for index, name in enumerate(names)
        ),
        intransitivity=_intransitivity(names, rates, scores, responses, policies, judge.votes),
        samples=_samples(prompts, references, responses, policies, against_policies, samples),
        meta_game=_meta_game(rates, scores, len(policies), seed),
    )


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
    if result.prompts < 200:
        found.append(f"Only {result.prompts} prompts were judged, so the intervals are wide.")
    return found


def _check(
    prompts: Sequence[str],
    players: Mapping[str, Player],
    references: Sequence[Sequence[str]] | None,
) -> None:
    if not prompts:
        raise UserError("a tournament needs at least one prompt, got none")
    if REFERENCE in players:
        raise UserError(f"a policy cannot be called {REFERENCE!r}: the human references are")
    for name, player in players.items():
        for what in ("responses", "log_ratios", "token_counts"):
            values = getattr(player, what)
            if values is not None and len(values) != len(prompts):
                raise ValueError(f"{name} has {len(values)} {what} for {len(prompts)} prompts")
    if references is None:
        return
    if len(references) != len(prompts):
        raise ValueError(f"{len(references)} lists of references for {len(prompts)} prompts")
    for number, texts in enumerate(references, start=1):
        if not texts:
            raise UserError(
                f"prompt {number} of {len(prompts)} has no reference; give references to every"
                " prompt or to none"
            )


def _judge_all_pairs(prompts, responses, judge, on_pair) -> np.ndarray:
    """Scores `[N, K, K]`, antisymmetric, 1/2 on the diagonal."""
    names = list(responses)
    scores = np.full((len(prompts), len(names), len(names)), 0.5)
    pairs = list(itertools.combinations(range(len(names)), 2))
    for number, (i, j) in enumerate(pairs, start=1):
        answer = judges.answers(judge, prompts, responses[names[i]], responses[names[j]])
        scores[:, i, j] = answer
        scores[:, j, i] = 1 - answer
        if on_pair is not None:
            on_pair(number, len(pairs))
    return scores


def _scores_against_policies(scores: np.ndarray, policies: int) -> np.ndarray | None:
    """Mean over the policies other than the player itself `[N, K]`; None if there is but one."""
    if policies < 2:
        return None
    players = scores.shape[1]
    opponent = np.arange(players)[:, None] != np.arange(policies)
    total = (scores[:, :, :policies] * opponent).sum(axis=2)
    return total / opponent.sum(axis=1)


def _summary(name, player, mean_win_rate, references, rouge) -> PlayerSummary:
    texts = [text.strip() for text in player.responses]
    kl = standard_error = None
    if player.log_ratios is not None:
        ratios = np.asarray(player.log_ratios, np.float64)
        if not np.all(np.isfinite(ratios)):
            raise ValueError(f"{name} has a log ratio that is not finite")
        kl = float(ratios.mean())
        if len(ratios) > 1:
            standard_error = float(ratios.std(ddof=1) / np.sqrt(len(ratios)))
    overlap = dict.fromkeys(_ROUGE)
    if references is not None:
        each = [rouge(tuple(of), text) for of, text in zip(references, texts, strict=True)]
        overlap = dict(zip(_ROUGE, np.mean(each, axis=0).tolist(), strict=True))
    return PlayerSummary(
        name=name,
        mean_win_rate=mean_win_rate,
        kl=kl,
        kl_standard_error=standard_error,
        mean_words=float(np.mean([len(text.split()) for text in texts])),
        mean_tokens=None if player.token_counts is None else float(np.mean(player.token_counts)),
        distinct=len(set(texts)) / len(texts),
        empty=sum(not text for text in texts) / len(texts),
        **overlap,
    )


class _Rouge:
    """F1 of ROUGE-1, -2 and -L against the best reference; equal questions are answered once."""

    def __init__(self):
        self._scorer = rouge_scorer.RougeScorer(list(_ROUGE), use_stemmer=False)
        self._ask = functools.lru_cache(maxsize=None)(self._score)

    def __call__(self, references: tuple[str, ...], response: str) -> tuple[float, ...]:
        return self._ask(references, response)

    def _score(self, references, response):
        best = self._scorer.score_multi(references, response)
        return tuple(float(best[name].fmeasure) for name in _ROUGE)


def _intransitivity(names, rates, scores, responses, policies, votes) -> Intransitivity:
    count = len(policies)
    response_triples = response_cycles = None
    if not votes:
        texts = np.array([[text.strip() for text in responses[name]] for name in policies], object)
        distinct = texts.T[:, :, None] != texts.T[:, None, :]
        response_triples, response_cycles = statistics.count_cyclic_triples(
            scores[:, :count, :count], distinct.astype(bool)
        )
    return Intransitivity(
        policy_triples=count * (count - 1) * (count - 2) // 6,
        policy_cycles=tuple(
            tuple(names[index] for index in cycle)
            for cycle in statistics.cycles(rates.rate[:count, :count])
        ),
        response_triples=response_triples,
        response_cycles=response_cycles,
    )


def _meta_game(rates, scores, policies, seed) -> tuple[Standing, ...] | None:
    if policies < 2:
        return None
    return statistics.standings(rates.first(policies), scores[:, :policies, :policies], seed)


def _read_meta_game(standings: list[dict] | None) -> tuple[Standing, ...] | None:
    if standings is None:
        return None
    estimates = ("nash", "win_rate_over_nash", "exploitability")
    return tuple(
        Standing(**standing | {name: Estimate(**standing[name]) for name in estimates})
        for standing in standings
    )


def _samples(
    prompts, references, responses, policies, against_policies, count
) -> tuple[Sample, ...]:
    count = min(count, len(prompts))
    rows = [index * len(prompts) // count for index in range(count)]
    return tuple(
        Sample(
            prompt=prompts[row],
            references=() if references is None else tuple(references[row]),
            responses={name: responses[name][row] for name in policies},
            scores=None
            if against_policies is None
            else {name: float(against_policies[row, index]) for index, name in enumerate(policies)},
        )
        for row in rows
    )
