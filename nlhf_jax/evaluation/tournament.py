"""A tournament: every policy against every other on the same prompts, under one judge."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rouge_score import rouge_scorer

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import intervals, judges, opinions, statistics, text_measures
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.judgements import Judgements
from nlhf_jax.evaluation.judges import Judge
from nlhf_jax.evaluation.length_control import length_controlled
from nlhf_jax.evaluation.opinions import Opinion
from nlhf_jax.evaluation.results import (
    REFERENCE,
    Intransitivity,
    PlayerSummary,
    Sample,
    TournamentResult,
)
from nlhf_jax.evaluation.statistics import Standing, WinRates

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


def play(
    prompts: Sequence[str],
    players: Mapping[str, Player],
    judge: Judge,
    references: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    samples: int = 10,
    on_pair: Callable[[int, int], None] | None = None,
    kept: Judgements | None = None,
    others: Sequence[Judgements] = (),
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
      kept: where the judge's answers are kept.
      others: judges whose opinions stand beside the judge's.

    Raises:
      UserError: no prompts, fewer than two players, a policy named `reference`, or a prompt without
        references.
    """
    _check(prompts, players, references)
    policies = tuple(players)
    responses = {name: list(player.responses) for name, player in players.items()}
    if references is not None:
        responses[REFERENCE] = drawn_references(references, seed)
    names = tuple(responses)
    if len(names) < 2:
        raise UserError(f"a tournament needs two players or more, got {', '.join(names) or 'none'}")

    hearing = _Hearing(prompts, responses, on_pair, 1 + len(others))
    scores = hearing.scores(judge, kept, 0)
    rates = statistics.win_rates(names, scores, judge.votes, seed)
    against_policies = _scores_against_policies(scores, len(policies))
    means = None if against_policies is None else intervals.bootstrap_means(against_policies, seed)
    controlled, at_level = _at_equal_length(responses, scores, len(policies), seed)
    different = _different(responses)
    rouge = _Rouge()
    return TournamentResult(
        judge=judge.name,
        votes=bool(judge.votes),
        prompts=len(prompts),
        win_rates=rates,
        players=tuple(
            dataclasses.replace(
                _summary(
                    name,
                    players.get(name, Player(responses[name])),
                    None if means is None else means[index],
                    references if name != REFERENCE else None,
                    rouge,
                ),
                length_controlled=None if at_level is None else at_level[index],
                text=text_measures.measure(prompts, responses[name]),
            )
            for index, name in enumerate(names)
        ),
        length_controlled=controlled,
        intransitivity=_intransitivity(names, rates, scores, different, policies, judge.votes),
        samples=_samples(prompts, references, responses, policies, against_policies, samples),
        meta_game=_meta_game(rates, scores, len(policies), seed),
        seed=seed,
        judge_certainty=None if judge.votes else _certainty(scores, different),
        opinions=tuple(
            _opinion(
                other, hearing.scores(other.judge, other, n), scores, different, policies, seed
            )
            for n, other in enumerate(others, start=1)
        ),
    )


def _opinion(
    other: Judgements,
    found: np.ndarray,
    scores: np.ndarray,
    different: np.ndarray,
    policies: tuple[str, ...],
    seed: int,
) -> Opinion:
    """What another judge's answers `found` are, beside the judge's `scores`: `[N, K, K]` each."""
    players = policies if found.shape[1] == len(policies) else (*policies, REFERENCE)
    own, of_judge = (_scores_against_policies(one, len(policies)) for one in (found, scores))
    means, gaps = {}, {}
    if own is not None and of_judge is not None:
        for index, name in enumerate(policies):
            means[name] = intervals.bootstrap_mean(own[:, index], seed)
            gaps[name] = opinions.gap(own[:, index], of_judge[:, index], seed)
    kappa, agreeing = opinions.agreement([scores, found], different, seed)
    return Opinion(
        judge=other.name,
        votes=bool(other.judge.votes),
        win_rates=statistics.win_rates(players, found, other.judge.votes, seed),
        mean_win_rates=means,
        gaps=gaps,
        kappa=kappa,
        agreeing=agreeing,
    )


def drawn_references(references: Sequence[Sequence[str]], seed: int) -> list[str]:
    """What the player `reference` hands in: of each prompt one of its references, drawn evenly."""
    pick = np.random.default_rng(seed).random(len(references))
    return [texts[int(u * len(texts))] for u, texts in zip(pick, references, strict=True)]


def _at_equal_length(
    responses: Mapping[str, Sequence[str]], scores: np.ndarray, policies: int, seed: int
) -> tuple[WinRates, list[Estimate] | None]:
    """The length-controlled win rates, and each player's mean of them over the other policies."""
    lengths = np.array([[len(text.strip()) for text in of] for of in responses.values()]).T
    rates, values = length_controlled(tuple(responses), scores, lengths, seed)
    against = _scores_against_policies(values, policies)
    if against is None:
        return rates, None
    return rates, [one.clipped() for one in intervals.bootstrap_means(against, seed)]


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


@dataclasses.dataclass(frozen=True)
class _Hearing:
    """What several judges hear one after the other: every pair of players on every prompt."""

    prompts: Sequence[str]
    responses: Mapping[str, Sequence[str]]
    on_pair: Callable[[int, int], None] | None
    judges: int

    def scores(self, judge: Judge, kept: Judgements | None, before: int) -> np.ndarray:
        """`[N, K, K]`, 1/2 on the diagonal; `before` of the judges have been asked already."""
        names = list(self.responses)
        scores = np.full((len(self.prompts), len(names), len(names)), 0.5)
        pairs = list(itertools.combinations(range(len(names)), 2))
        for number, (i, j) in enumerate(pairs, start=1):
            texts = self.prompts, self.responses[names[i]], self.responses[names[j]]
            if kept is None:
                scores[:, i, j] = judges.answers(judge, *texts)
            else:
                scores[:, i, j] = kept.of((names[i], names[j]), *texts)
            scores[:, j, i] = 1 - scores[:, i, j]
            if self.on_pair is not None:
                self.on_pair(before * len(pairs) + number, self.judges * len(pairs))
        return scores


def _different(responses: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Whether two players' texts differ: bool `[N, K, K]`."""
    texts = np.array([[text.strip() for text in of] for of in responses.values()], object).T
    return (texts[:, :, None] != texts[:, None, :]).astype(bool)


def _certainty(scores: np.ndarray, different: np.ndarray) -> float | None:
    """Mean of max(P, 1 - P) over pairs of different texts; None if there are none."""
    found = np.maximum(scores, 1 - scores)[different]
    return float(found.mean()) if found.size else None


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


def _intransitivity(names, rates, scores, different, policies, votes) -> Intransitivity:
    count = len(policies)
    response_triples = response_cycles = None
    if not votes:
        among = np.s_[:, :count, :count]
        response_triples, response_cycles = statistics.count_cyclic_triples(
            scores[among], different[among]
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
