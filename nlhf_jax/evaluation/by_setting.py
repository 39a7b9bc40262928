"""A tournament of many runs as one of their settings, for whom a hundred rows say too much."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from nlhf_jax.evaluation import statistics
from nlhf_jax.evaluation.opinions import Opinion
from nlhf_jax.evaluation.results import (
    REFERENCE,
    Intransitivity,
    PlayerSummary,
    Sample,
    TournamentResult,
)
from nlhf_jax.evaluation.seeds import mean_over_runs, over_others, over_seeds, settings_of
from nlhf_jax.evaluation.text_measures import TextMeasures

Groups = Mapping[str, Sequence[str]]
_Measures = TypeVar("_Measures", PlayerSummary, TextMeasures)
_Value = TypeVar("_Value")


def by_setting(result: TournamentResult) -> TournamentResult:
    """The result with a player a setting: its runs are those called `SETTING#NUMBER`.

    Win rates are those of `seeds.over_seeds`; other figures are means over runs, with Student's
    intervals over runs, and standard errors of that kind; of a setting with one run they are this
    run's. Samples are those of each setting's first run. The game between the policies is left out:
    it is of runs, whose masses have no intervals together.
    """
    groups = settings_of(result.win_rates.names)
    rates = over_seeds(result.win_rates, groups)
    controlled = result.length_controlled and over_seeds(result.length_controlled, groups)
    policies = [name for name in groups if name != REFERENCE]
    cycles = statistics.cycles(
        np.array([[rates.between(one, other).value for other in policies] for one in policies])
    )
    by_name = {player.name: player for player in result.players}
    return dataclasses.replace(
        result,
        win_rates=rates,
        length_controlled=controlled,
        players=tuple(
            _player(result, groups, name, [by_name[run] for run in runs])
            for name, runs in groups.items()
        ),
        intransitivity=Intransitivity(
            policy_triples=len(policies) * (len(policies) - 1) * (len(policies) - 2) // 6,
            policy_cycles=tuple((policies[i], policies[j], policies[k]) for i, j, k in cycles),
            response_triples=result.intransitivity.response_triples,
            response_cycles=result.intransitivity.response_cycles,
        ),
        samples=tuple(_sample(sample, groups) for sample in result.samples),
        meta_game=None,
        trained_against_judge=tuple(settings_of(result.trained_against_judge)),
        training_unknown=tuple(settings_of(result.training_unknown)),
        opinions=tuple(_opinion(opinion, groups) for opinion in result.opinions),
        notes=(
            *result.notes,
            f"{len(result.win_rates.names)} runs of {len(groups)} settings played. Figures are"
            " means over the runs of a setting, and intervals say what other runs would give;"
            " samples are of each setting's first run. Every run by itself stands in report.json"
            " and report.csv.",
        ),
    )


def _player(
    result: TournamentResult, groups: Groups, name: str, runs: Sequence[PlayerSummary]
) -> PlayerSummary:
    merged = dataclasses.replace(_merged(runs), name=name)
    if len(runs) > 1 and merged.kl is not None:
        spread = float(stats.sem([run.kl for run in runs]))
        merged = dataclasses.replace(merged, kl_standard_error=spread)
    texts = [run.text for run in runs if run.text is not None]
    met = {**_policies(groups), name: groups[name]}
    mean, controlled = (
        over_others(rates, met, name) if rates is not None and len(met) > 1 else None
        for rates in (result.win_rates, result.length_controlled)
    )
    return dataclasses.replace(
        merged,
        mean_win_rate=mean,
        length_controlled=controlled,
        text=_merged(texts) if len(texts) == len(runs) else None,
    )


def _policies(groups: Groups) -> Groups:
    return {name: runs for name, runs in groups.items() if name != REFERENCE}


def _merged(runs: Sequence[_Measures]) -> _Measures:
    """Means of all fields that are numbers in each run; the others are the first run's, or None."""
    names = [field.name for field in dataclasses.fields(runs[0])]
    values = {name: [getattr(run, name) for run in runs] for name in names}
    means: dict[str, Any] = {
        name: None if None in of_runs else float(np.mean(of_runs))
        for name, of_runs in values.items()
        if any(isinstance(value, int | float) for value in of_runs)
    }
    return dataclasses.replace(runs[0], **means)


def _sample(sample: Sample, groups: Groups) -> Sample:
    def of_first_runs(values: Mapping[str, _Value]) -> dict[str, _Value]:
        return {name: values[runs[0]] for name, runs in groups.items() if runs[0] in values}

    return dataclasses.replace(
        sample,
        responses=of_first_runs(sample.responses),
        scores=None if sample.scores is None else of_first_runs(sample.scores),
    )


def _opinion(opinion: Opinion, groups: Groups) -> Opinion:
    policies = _policies(groups)
    return dataclasses.replace(
        opinion,
        win_rates=over_seeds(opinion.win_rates, groups),
        mean_win_rates={name: over_others(opinion.win_rates, policies, name) for name in policies},
        gaps={
            name: opinion.gaps[runs[0]]
            if len(runs) == 1
            else mean_over_runs([opinion.gaps[run].value for run in runs])
            for name, runs in policies.items()
        },
        trained_against=tuple(settings_of(opinion.trained_against)),
    )
