"""Tournaments of many runs, as their settings."""

import json
import re

import numpy as np
import pytest
from etils import epath

from nlhf_jax.evaluation import tournament
from nlhf_jax.evaluation.by_setting import by_setting
from nlhf_jax.evaluation.judgements import Judgements
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.evaluation.results import REFERENCE, check_result
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.report.writing import write_report

PROMPTS, SETTINGS, RUNS = 24, ("A", "B", "C", "D", "E", "F"), 3


def by_words(scale: float) -> PopulationJudge:
    """The longer text is preferred, the more so the longer it is."""

    def prefers(prompts, first, second):
        more = [len(a.split()) - len(b.split()) for a, b in zip(first, second, strict=True)]
        return 0.5 + 0.5 * np.tanh(scale * np.array(more))

    return PopulationJudge(prefers)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Each setting writes more words than the one before, its runs differ a little."""
    rng = np.random.default_rng(0)
    texts = {
        f"{setting}#{run}": [
            " ".join(f"{setting}{run}{n}" for n in range(many)) for many in lengths
        ]
        for rank, setting in enumerate(SETTINGS)
        for run, lengths in enumerate(3 + rank + rng.integers(0, 3, (RUNS, PROMPTS)))
    }
    texts["SFT"] = ["one two"] * PROMPTS
    players = {
        name: Player(said, rng.uniform(0, 1 + len(name), PROMPTS), np.full(PROMPTS, 9))
        for name, said in texts.items()
    }
    other = Judgements(epath.Path(tmp_path_factory.mktemp("kept")), "other", by_words(0.05), None)
    prompts = [f"prompt {n}" for n in range(PROMPTS)]
    references = [["a person writes four"]] * PROMPTS
    return tournament.play(prompts, players, by_words(0.02), references, others=[other])


def test_a_player_is_a_setting_and_its_figures_are_means_over_its_runs(played):
    found = by_setting(played)
    check_result(found)
    assert found.win_rates.names == (*SETTINGS, "SFT", REFERENCE)
    by_name = {player.name: player for player in played.players}
    rate, names = played.win_rates.rate, played.win_rates.names
    for player in found.players[: len(SETTINGS)]:
        runs = [f"{player.name}#{n}" for n in range(RUNS)]
        kl = [by_name[run].kl for run in runs]
        assert player.kl == pytest.approx(np.mean(kl))
        assert player.kl_standard_error == pytest.approx(np.std(kl, ddof=1) / np.sqrt(RUNS))
        assert player.mean_words == pytest.approx(np.mean([by_name[x].mean_words for x in runs]))
        novelty = [by_name[run].text.novelty for run in runs]
        assert player.text.novelty == pytest.approx(np.mean(novelty))
        rows = [names.index(run) for run in runs]
        others = [i for i, name in enumerate(names) if name not in (*runs, REFERENCE)]
        assert player.mean_win_rate.value == pytest.approx(rate[np.ix_(rows, others)].mean())
        assert player.mean_win_rate.low < player.mean_win_rate.value < player.mean_win_rate.high
    sft, reference = found.players[-2:]
    assert (sft.kl, sft.kl_standard_error) == (by_name["SFT"].kl, by_name["SFT"].kl_standard_error)
    rows = [i for i, name in enumerate(names) if name != REFERENCE]
    over_policies = rate[names.index(REFERENCE), rows].mean()
    assert reference.mean_win_rate.value == pytest.approx(over_policies)
    assert sft.distinct == by_name["SFT"].distinct == 1 / PROMPTS
    assert found.intransitivity.policy_triples == 35 and not found.intransitivity.policy_cycles


def test_samples_are_those_of_the_first_runs(played):
    for sample, all_runs in zip(by_setting(played).samples, played.samples, strict=True):
        assert list(sample.responses) == [*SETTINGS, "SFT"]
        assert sample.responses["B"] == all_runs.responses["B#0"]
        assert sample.scores["B"] == all_runs.scores["B#0"]


def test_other_judges_speak_of_settings_too(played):
    (whole,), (opinion,) = played.opinions, by_setting(played).opinions
    assert set(opinion.mean_win_rates) == set(opinion.gaps) == {*SETTINGS, "SFT"}
    gaps = [whole.gaps[f"A#{n}"].value for n in range(RUNS)]
    assert opinion.gaps["A"].value == pytest.approx(np.mean(gaps))
    assert opinion.gaps["A"].low < min(gaps) < opinion.gaps["A"].high


def test_a_report_of_many_runs_shows_settings_and_keeps_the_runs(played, tmp_path):
    played.save(tmp_path / "tournament.json")
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "F is preferred to every other policy" in text
    assert not re.search(r"[A-F]#\d", text)
    assert "20 runs of 8 settings played" in text
    assert "intervals are Student's, over runs" in text
    assert "Over seeds" not in text and "Alpha-rank" not in text
    kept = json.loads((tmp_path / "report.json").read_text())["tournament"]
    assert tuple(kept["win_rates"]["names"]) == played.win_rates.names
    assert "A#0,A#1," in (tmp_path / "report.csv").read_text()
