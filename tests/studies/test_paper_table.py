"""What the study says of numbers that were planted."""

import dataclasses

import numpy as np
import pytest

from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.statistics import WinRates
from nlhf_jax.studies import paper_table
from nlhf_jax.studies.paper_table import UNKNOWN, Compared, answers

SETTINGS = ("SFT", "RLHF", "SP", "MD1", "MD3", "BR", "EMA1")
# Of each the strength: it beats another with 1/2 plus the difference.
STRENGTH = {"SFT": -0.4, "RLHF": -0.1, "SP": 0.0, "MD1": 0.08, "MD3": 0.0, "BR": -0.2, "EMA1": -0.1}
EXPLOITED = {"RLHF": 0.2, "SP": 0.05, "MD1": 0.02, "MD3": 0.021, "BR": 0.3}


def compared(noise=0.005, seeds=4, strength=STRENGTH, exploited=EXPLOITED):
    """Runs that differ by `noise`."""
    rng = np.random.default_rng(0)
    names = [f"{name}#{seed}" for name in SETTINGS[1:] for seed in range(seeds)]
    names = ("SFT", *names, "reference")
    own = np.array([strength.get(n.partition("#")[0], 0.0) for n in names])
    own[1:-1] += noise * rng.standard_normal(len(names) - 2)
    rate = np.clip(0.5 + own[:, None] - own[None, :], 0.0, 1.0)
    np.fill_diagonal(rate, 0.5)
    p = np.ones_like(rate)
    runs = WinRates(names, rate, rate, rate, 100, "bootstrap", p)
    values = {n: mean + noise * rng.standard_normal(seeds) for n, mean in exploited.items()}
    return Compared(runs, values)


def answer(part, found):
    (one,) = [each for each in answers(found) if part in each.question]
    return one


def test_a_clear_case_is_told():
    found = compared()
    assert answer("reward", found).short == "Yes"
    assert answer("Which β", found).short == "0.125 (MD1)"
    assert answer("exploited?", found).short == "Yes"
    assert answer("lag", found).short == "Yes"
    assert answer("hardest", found).short == "MD1, but MD3 cannot be told from it"


def test_the_contrary_is_told_as_well():
    turned = {name: -value for name, value in STRENGTH.items()}
    found = compared(strength=turned, exploited=EXPLOITED | {"BR": 0.0, "SP": 0.2})
    assert answer("reward", found).short == "No"
    assert answer("exploited?", found).short == "No"
    assert answer("lag", found).short == "No"
    assert answer("Which β", found).short == "1 (BR)"


def test_averages_of_which_none_is_behind_are_not_said_to_be():
    found = compared(strength=STRENGTH | {"EMA1": 0.1, "MD3": 0.005})
    assert answer("lag", found).short == "No"
    runs = found.runs
    names = ("SFT", *(name.replace("MD3", "EMA2") for name in runs.names[1:]))
    planted = dataclasses.replace(runs, names=names)
    some = Compared(planted, {"SP": [0.1]})
    assert answer("lag", some).short == "None is seen to; ahead: EMA1"


def test_where_runs_differ_by_more_than_settings_nothing_is_told():
    found = compared(noise=0.3)
    for part in ("reward", "lag"):
        assert answer(part, found).short == UNKNOWN
    assert "does not beat" in answer("Which β", found).short
    assert "cannot be told" in answer("hardest", found).short


def test_a_response_that_lost_says_nothing_of_its_opponent():
    """It could have stayed what it began as, which ties."""
    found = answer("hardest", compared(exploited=EXPLOITED | {"EMA1": -0.1}))
    assert found.short == "MD1, but MD3 cannot be told from it"
    assert found.because.endswith("Of EMA1 nothing is known: the response lost to them.")
    lost = answer("hardest", compared(exploited={"SP": -0.1, "MD1": -0.2}))
    assert lost.short == UNKNOWN


def test_the_hardest_opponent_is_the_setting_that_wins_most():
    found = compared()
    assert found.hardest_opponent("SP") == "MD1"
    assert found.hardest_opponent("MD1") in ("MD3", "SP")


def test_every_answer_has_its_intervals():
    for one in answers(compared()):
        assert one.question.endswith("?")
        if "orderings" not in one.question:
            assert " to " in one.because
        assert str(one).startswith(one.question)


def test_published_orderings_hold_are_reversed_or_cannot_be_told():
    verdicts = {row[:2]: row[-1] for row in paper_table.orderings(compared())}
    assert verdicts["MD1", "RLHF"] == "holds"
    assert verdicts["BR", "RLHF"] == "holds"
    assert verdicts["MD1", "SP"] == "holds"
    assert ("SP", "RLHF") not in verdicts  # published within its own interval of one half
    turned = {name: -value for name, value in STRENGTH.items()}
    verdicts = {row[:2]: row[-1] for row in paper_table.orderings(compared(strength=turned))}
    assert verdicts["MD1", "RLHF"] == "is reversed"
    verdicts = {row[:2]: row[-1] for row in paper_table.orderings(compared(noise=0.3))}
    assert verdicts["MD1", "SP"] == "cannot be told"


def test_the_published_table_is_the_paper_s():
    assert len(paper_table.PUBLISHED) == 13 + 12 + 6 + 2
    assert paper_table.PUBLISHED["BR", "RLHF"] == 0.148
    assert paper_table.PUBLISHED["EMA2*", "SFT"] == 0.980
    assert paper_table.PUBLISHED["EMA1", "SFT"] == 0.970


def test_of_one_run_the_interval_is_over_prompts():
    ends = {name: Estimate(value, value - 0.03, value + 0.04) for name, value in EXPLOITED.items()}
    found = Compared(compared().runs, {name: [value] for name, value in EXPLOITED.items()}, ends)
    assert found.exploitability("SP") == ends["SP"]
    gap = found.gap("BR", "SP")
    assert gap.value == pytest.approx(0.25)
    assert gap.low == pytest.approx(0.25 - 0.05) and gap.high == pytest.approx(0.25 + 0.05)


def test_student_s_interval_covers_the_mean_of_what_runs_are_drawn_from():
    rng = np.random.default_rng(1)
    draws = rng.normal(0.1, 0.05, (2000, 3))
    held = 0
    for values in draws:
        one = Compared(compared().runs, {"SP": values}).exploitability("SP")
        held += one.low <= 0.1 <= one.high
    assert abs(held / len(draws) - 0.95) < 0.02
