import dataclasses
import json

import numpy as np
import pytest
from rouge_score import rouge_scorer

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import results, tournament
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.judges import PreferenceModelJudge
from nlhf_jax.evaluation.results import TournamentResult
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.evaluation.votes import RaterAccuracy
from nlhf_jax.models.language_model import T5_TOKENS
from tests.evaluation.games import referee

PROMPTS = [f"round {number}" for number in range(8)]


def constant(throw: str) -> Player:
    return Player([throw] * len(PROMPTS))


PURE = {throw: constant(throw) for throw in ("rock", "paper", "scissors")}


def play(players=PURE, judge=None, **settings) -> TournamentResult:
    return tournament.play(PROMPTS, players, judge or referee(), **settings)


def player(result: TournamentResult, name: str) -> tournament.PlayerSummary:
    return next(summary for summary in result.players if summary.name == name)


def test_the_matrix_of_pure_throws_is_the_game_itself():
    rates = play().win_rates
    np.testing.assert_allclose(rates.rate, [[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]])
    assert rates.names == ("rock", "paper", "scissors")
    assert rates.n == len(PROMPTS)


def test_rock_paper_scissors_is_one_cycle_among_policies_and_among_responses():
    found = play().intransitivity
    assert found.policy_cycles == (("rock", "scissors", "paper"),)
    assert (found.policy_triples, found.policy_share) == (1, 1.0)
    assert (found.response_triples, found.response_cycles) == (len(PROMPTS), len(PROMPTS))


def test_only_triples_of_different_responses_are_looked_at():
    players = PURE | {"paper": Player(["rock "] * 5 + ["paper"] * 3)}
    found = play(players).intransitivity
    assert (found.response_triples, found.response_cycles) == (3, 3)


def test_single_votes_say_nothing_about_cycles_of_responses():
    result = play(judge=referee(votes=True))
    assert result.intransitivity.response_share is None
    assert result.win_rates.interval == "Clopper-Pearson"


def test_the_mean_win_rate_is_over_the_other_policies_and_not_over_the_reference():
    players = {"a": constant("rock"), "b": constant("paper"), "c": constant("paper")}
    result = play(players, references=[["scissors"]] * len(PROMPTS))
    assert player(result, "a").mean_win_rate.value == pytest.approx(0.1)
    assert player(result, "b").mean_win_rate.value == pytest.approx((0.9 + 0.5) / 2)
    assert player(result, "reference").mean_win_rate.value == pytest.approx((0.1 + 0.9 + 0.9) / 3)
    assert result.win_rates.between("a", "reference").value == pytest.approx(0.9)


def test_the_reference_player_hands_in_one_of_the_prompt_s_references():
    references = [["scissors", "rock"]] * len(PROMPTS)
    rate = play({"a": constant("rock")}, references=references).win_rates.between("a", "reference")
    assert 0.5 < rate.value < 0.9
    assert rate.value * len(PROMPTS) == pytest.approx(round((rate.value - 0.5) * 20) * 0.4 + 4)


def test_the_game_between_policies_is_played_without_the_reference():
    players = {"a": constant("rock"), "b": constant("paper"), "c": constant("scissors")}
    # Water ties with every throw: it would have a quarter of the mass.
    game = play(players, references=[["water"]] * len(PROMPTS)).meta_game
    assert [policy.name for policy in game] == ["a", "b", "c"]
    assert [policy.nash.value for policy in game] == pytest.approx([1 / 3] * 3)
    assert [policy.best_response for policy in game] == ["b", "c", "a"]
    assert game[0].exploitability.value == pytest.approx(0.4)


def test_one_policy_alone_has_nobody_to_play_with():
    result = play({"a": constant("rock")}, references=[["paper"]] * len(PROMPTS))
    assert result.meta_game is None
    assert TournamentResult.from_json(result.to_json()).meta_game is None


def test_kl_is_the_mean_log_ratio_with_its_standard_error():
    ratios = np.random.default_rng(0).normal(3.0, 2.0, len(PROMPTS))
    result = play(PURE | {"rock": Player(["rock"] * len(PROMPTS), log_ratios=ratios)})
    rock = player(result, "rock")
    assert rock.kl == pytest.approx(ratios.mean())
    assert rock.kl_standard_error == pytest.approx(ratios.std(ddof=1) / np.sqrt(len(PROMPTS)))
    assert player(result, "paper").kl is None


def test_lengths_and_shares_describe_the_responses():
    texts = ["a b c", "a b c ", "d", "", "  ", "e f", "g", "h"]
    counts = np.arange(len(PROMPTS))
    a = player(play({"a": Player(texts, token_counts=counts), "b": constant("x")}), "a")
    assert a.mean_words == (3 + 3 + 1 + 0 + 0 + 2 + 1 + 1) / 8
    assert a.mean_tokens == 3.5
    assert a.distinct == 6 / 8
    assert a.empty == 2 / 8


def test_rouge_is_that_of_the_package_against_the_best_reference():
    texts = [f"my sister took the car number {n}" for n in range(len(PROMPTS))]
    references = [["sister took a car", f"the car number {n} is gone"] for n in range(len(PROMPTS))]
    result = play({"a": Player(texts), "b": Player(texts)}, references=references)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for measure in ("rouge1", "rouge2", "rougeL"):
        best = [
            max(scorer.score(reference, text)[measure].fmeasure for reference in of)
            for text, of in zip(texts, references, strict=True)
        ]
        assert getattr(player(result, "a"), measure) == pytest.approx(np.mean(best))
    assert player(result, "reference").rouge1 is None


def test_samples_hold_every_response_and_the_judge_s_mean_answer_for_it():
    result = play(samples=3, references=[["rock"]] * len(PROMPTS))
    assert [sample.prompt for sample in result.samples] == ["round 0", "round 2", "round 5"]
    first = result.samples[0]
    assert first.responses == {"rock": "rock", "paper": "paper", "scissors": "scissors"}
    assert first.references == ("rock",)
    assert first.scores == pytest.approx({"rock": 0.5, "paper": 0.5, "scissors": 0.5})


@pytest.mark.parametrize("votes", [False, True])
@pytest.mark.parametrize("references", [None, [["rock", "päper \u2028 | <b>"]] * len(PROMPTS)])
def test_json_gives_the_result_back_bit_for_bit(votes, references, tmp_path):
    ratios = np.random.default_rng(0).normal(size=len(PROMPTS))
    players = PURE | {"rock": Player(["rock"] * len(PROMPTS), ratios, np.full(8, 3))}
    raters = (RaterAccuracy("a rater", Estimate(2 / 3, 0.1 + 0.2, 0.7), 30),)
    result = play(players, referee(votes=votes), references=references)
    result = dataclasses.replace(result, raters=raters)
    result.save(tmp_path / "deep" / "tournament.json")
    again = TournamentResult.load(tmp_path / "deep" / "tournament.json")
    for field in dataclasses.fields(result):
        if field.name not in ("win_rates", "length_controlled"):
            assert getattr(again, field.name) == getattr(result, field.name)
    for field in dataclasses.fields(result.win_rates):
        for one, other in (
            (again.win_rates, result.win_rates),
            (again.length_controlled, result.length_controlled),
        ):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["tournament.json"]


def test_a_file_from_before_raters_were_measured_has_none():
    tree = json.loads(play().to_json())
    del tree["raters"]
    assert TournamentResult.from_json(json.dumps(tree)).raters == ()


def test_a_file_of_release_0_1_is_read_with_p_values_from_its_intervals():
    tree = json.loads(play().to_json())
    del tree["win_rates"]["p"]
    for name in ("seed", "temperature", "judge_certainty", "trained_against_judge"):
        del tree[name]
    tree["win_rates"]["rate"][0][1], tree["win_rates"]["low"][0][1] = 0.55, 0.50
    tree["win_rates"]["high"][0][1] = 0.60
    again = TournamentResult.from_json(json.dumps(tree))
    assert again.win_rates.p[0, 1] == pytest.approx(0.05)
    assert (again.seed, again.judge_certainty, again.trained_against_judge) == (None, None, ())


def test_how_sure_the_judge_is_is_its_mean_distance_over_different_responses():
    assert play().judge_certainty == pytest.approx(0.9)
    more = PURE | {"again": constant("rock "), "water": constant("water")}
    # Of ten pairs one is of equal texts; "rock " is no throw that the referee knows.
    assert play(more).judge_certainty == pytest.approx((0.9 * 3 + 0.5 * 6) / 9)
    assert play(judge=referee(votes=True)).judge_certainty is None


def test_a_file_from_before_the_game_between_policies_has_none():
    tree = json.loads(play().to_json())
    assert len(tree["meta_game"]) == 3
    del tree["meta_game"]
    assert TournamentResult.from_json(json.dumps(tree)).meta_game is None


def test_a_file_from_before_lengths_were_controlled_is_read():
    tree = json.loads(play().to_json())
    del tree["length_controlled"]
    for player in tree["players"]:
        del player["length_controlled"], player["text"]
    for standing in tree["meta_game"]:
        del standing["alpha_rank"], standing["bradley_terry"]
    again = TournamentResult.from_json(json.dumps(tree))
    assert again.length_controlled is again.players[0].text is again.meta_game[0].alpha_rank is None


def test_throws_of_different_lengths_are_preferred_for_what_they_are():
    """All responses of a player are of one length here, so that no regression can blame it."""
    result = play()
    np.testing.assert_allclose(result.length_controlled.rate, result.win_rates.rate, atol=0.02)
    rock = player(result, "rock")
    assert rock.length_controlled.value == pytest.approx(0.5, abs=0.02)
    assert rock.text.distinct_1 == 1 / 8 and rock.text.novelty == 1
    assert [policy.alpha_rank.value for policy in result.meta_game] == pytest.approx([1 / 3] * 3)
    assert [policy.bradley_terry.value for policy in result.meta_game] == pytest.approx([0] * 3)


def test_a_file_that_is_no_tournament_is_named_in_one_sentence(tmp_path):
    path = tmp_path / "tournament.json"
    whole = play().to_json()
    for content in (
        "",
        "[]",
        "{}",
        whole[: len(whole) // 2],
        whole.replace('"format": 1', '"format": 9'),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match="tournament.json is not the result of a tournament"):
            TournamentResult.load(path)
    with pytest.raises(UserError, match="cannot read .*missing.json: No such file"):
        TournamentResult.load(tmp_path / "missing.json")


def test_a_collapsed_or_silent_or_rambling_policy_is_warned_of():
    varied = Player([f"a summary of plain length {n}" for n in range(len(PROMPTS))])
    silent = Player(["", *varied.responses[1:]])
    rambling = Player([text * 4 + " end" for text in varied.responses])
    references = [[f"the reference says what it says {n}"] for n in range(len(PROMPTS))]
    players = {"same": constant("one two three"), "silent": silent, "varied": varied}
    result = play(players | {"rambling": rambling}, references=references)
    sentences = results.warnings(result)
    assert "same has collapsed: only 12.5% of its responses are distinct." in sentences
    assert "silent answers with nothing to 12.5% of the prompts." in sentences
    assert any(line.startswith("rambling writes 2") for line in sentences)
    assert not any(line.startswith("varied") for line in sentences)
    assert "Only 8 prompts were judged, so the intervals are wide." in sentences


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"players": {"a": constant("rock")}}, "needs two players or more, got a"),
        ({"players": {"reference": constant("rock")}}, "cannot be called 'reference'"),
        ({"references": [["rock"]] * 7 + [[]]}, "prompt 8 of 8 has no reference"),
    ],
)
def test_a_tournament_that_cannot_be_played_says_why(settings, message):
    with pytest.raises(UserError, match=message):
        play(**settings)


def test_a_tournament_without_prompts_says_so():
    with pytest.raises(UserError, match="at least one prompt"):
        tournament.play([], {}, referee())


def test_a_judge_that_answers_with_what_is_no_probability_is_stopped():
    def broken(text, first, second):
        return np.full(len(text), np.nan, np.float32)

    with pytest.raises(ValueError, match="outside"):
        play(judge=PreferenceModelJudge(broken, lambda text: [5], T5_TOKENS, 4, 4, 2))


def test_progress_counts_every_pair():
    pairs = []
    play(references=[["rock"]] * len(PROMPTS), on_pair=lambda done, of: pairs.append((done, of)))
    assert pairs == [(number, 6) for number in range(1, 7)]
