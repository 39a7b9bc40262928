import csv
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from nlhf_jax.data import json_lines
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import blind_sheet, people, tournament
from nlhf_jax.evaluation.people import FIRST, SECOND, TIE, Rater
from tests.evaluation.test_blind_sheet import NAMES, numbered, tables

ANSWERS = {"1": FIRST, "tie": TIE, "2": SECOND}
SHEET = blind_sheet.draw(numbered(NAMES, 20), 60, 0)


def exported(sheet, answers, rater="Ann") -> str:
    """What the page saves, as JSON; tests/evaluation/test_sheet_page.py has it from the page."""
    lines = ",\n".join(
        "  " + json.dumps({"id": item, "answer": answer}) for item, answer in answers.items()
    )
    return (
        f'{{\n "sheet": {json.dumps(sheet.id)},\n "rater": {json.dumps(rater)},\n'
        f' "answers": [\n{lines}\n ]\n}}\n'
    )


def filled_in(sheet, answers, divider=",", mark="\ufeff") -> bytes:
    """The table as a spreadsheet writes it, with its last column filled in."""
    table = blind_sheet.table(sheet).decode("utf-8-sig")
    rows = list(csv.reader(io.StringIO(table, newline="")))
    for row in rows[1:]:
        row[4] = answers.get(row[0], "")
    stream = io.StringIO()
    csv.writer(stream, delimiter=divider).writerows(rows)
    return (mark + stream.getvalue()).encode()


def better(sheet, item, key) -> str:
    """The answer of one who prefers the response with the larger `key`."""
    _, first, second = sheet.texts(item)
    return "tie" if key(first) == key(second) else "1" if key(first) > key(second) else "2"


def read(tmp_path, content, sheet=SHEET, name="ann.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return people.read_answers([path], sheet)


# --- reading -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(tables(), st.data(), st.text(max_size=8))
def test_answers_come_back_as_they_were_given_by_every_way(
    tmp_path_factory, responses, data, rater
):
    sheet = blind_sheet.draw(responses, 100, 0)
    given_ = {
        item.id: answer
        for item in sheet.items
        if (answer := data.draw(st.sampled_from(["1", "2", "tie", None])))
    }
    if not given_:
        return
    folder = tmp_path_factory.mktemp("answers")
    found = read(folder, exported(sheet, given_, rater), sheet)
    expected = {item: ANSWERS[answer] for item, answer in given_.items()}
    assert found == [Rater(rater.strip() or "ann", expected)]
    divider, mark = data.draw(st.sampled_from(",;\t")), data.draw(st.sampled_from(["\ufeff", ""]))
    content = filled_in(sheet, {k: f" {v.upper()} " for k, v in given_.items()}, divider, mark)
    assert read(folder, content, sheet, "bob.csv") == [Rater("bob", expected)]


A, B, C = (item.id for item in SHEET.items[:3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", exported(SHEET, {A: "1", B: "3"}), f'line 6: the answer to {B} is "3" but'),
        ("a.json", exported(SHEET, {A: "1", B: 1}), f"line 6: the answer to {B} is 1 but must"),
        ("a.json", exported(SHEET, {A: []}), f"line 5: the answer to {A} is [] but must be 1,"),
        ("a.json", exported(SHEET, {A: "1", "x": "2"}), f"line 6: the sheet {SHEET.id} has no"),
        (
            "a.json",
            exported(SHEET, {A: "1", B: "2"}).replace(B, A),
            f'line 6: "Ann" has answered {A} already, in ',
        ),
        (
            "a.json",
            exported(SHEET, {A: "1"}).replace('"answer"', '"id"'),
            "line 5: wanted 'id' and 'answer', met",
        ),
        (
            "a.json",
            exported(SHEET, {A: "1"}).replace('"answer": "1"', '"answer": "1", "answer": "2"'),
            'line 5: the key "answer" is there twice',
        ),
        ("a.json", exported(SHEET, {}), "there are no answers in it"),
        ("a.json", exported(SHEET, {A: "1"})[:-4], "not valid JSON"),
        ("a.json", '{"answers": 3}', "wanted 'sheet', 'rater' and 'answers' of the page"),
        ("a.json", blind_sheet.key(SHEET), "this is a sheet.key.json; wanted answers"),
        (
            "a.json",
            exported(blind_sheet.draw(numbered(), 9, 1), {A: "1"}),
            f"and the key is of {json.dumps(SHEET.id)}",
        ),
        ("a.csv", f"id,answer\n{A},1\n{B},one\n", f'line 3: the answer to {B} is "one" but'),
        ("a.csv", f"id,answer\n{A},1\nx-1,2\n", "line 3: the sheet"),
        ("a.csv", f"id,answer\n{A},1\n{A},1\n", f'line 3: "a" has answered {A} already, in '),
        ("a.csv", f'id,t,answer\n{A},"two\nlines",1\n{B},t,4\n', "line 4: the answer to"),
        ("a.csv", f"id,reply\n{A},1\n", "line 1: wanted one column 'id' and one 'answer'"),
        ("a.csv", f"id,answer,answer\n{A},1,2\n", "line 1: wanted one column 'id' and one"),
        ("a.csv", f'id,answer\n{A},"1\n', "line 2: not a table: "),
        ("a.csv", blind_sheet.table(SHEET), "there are no answers in it"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", f"id,answer\n{A},1\n".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_what_cannot_be_an_answer_is_told_with_its_place(tmp_path, name, content, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        read(tmp_path, content, name=name)
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_several_files_of_one_rater_are_one_rater_but_not_two_exports(tmp_path):
    for name, answers in (("a", {A: "1"}), ("b", {B: "2"}), ("c", {A: "1", C: "tie"})):
        (tmp_path / f"{name}.json").write_text(exported(SHEET, answers))
    paths = [tmp_path / f"{name}.json" for name in "abc"]
    assert people.read_answers(paths[:2], SHEET) == [Rater("Ann", {A: FIRST, B: SECOND})]
    with pytest.raises(UserError, match=r'c.json, line 5: "Ann" has answered .*a.json, line 5'):
        people.read_answers(paths, SHEET)


# --- a judge -------------------------------------------------------------------------------------


def rater_of(sheet, key, name="Ann", every=1):
    return Rater(
        name,
        {item.id: ANSWERS[better(sheet, item, key)] for item in sheet.items[::every]},
    )


def drawn(responses, seed, count):
    """A sheet, and raters whose answers are drawn."""
    sheet = blind_sheet.draw(responses, 100, seed)
    rng = np.random.default_rng(seed)
    raters = [
        Rater(str(n), {item.id: rng.choice(list(ANSWERS.values())) for item in sheet.items})
        for n in range(count)
    ]
    return sheet, raters


def who(text):
    """Which player says it, of `numbered`."""
    return int(text.split()[1].split("-")[0])


def test_one_rater_s_votes_make_the_tournament_that_the_rater_sees():
    prompts, players, judge = people.answered(SHEET, [rater_of(SHEET, who)])
    assert judge.votes and len(prompts) == 20
    result = tournament.play(prompts, players, judge)
    np.testing.assert_array_equal(result.win_rates.rate, [[0.5, 0, 0], [1, 0.5, 0], [1, 1, 0.5]])
    assert result.win_rates.interval == "Clopper-Pearson"
    assert tuple(players) == NAMES


@settings(max_examples=25, deadline=None)
@given(tables(), st.integers(0, 9), st.integers(1, 3))
def test_a_judge_of_people_says_what_they_said_in_whichever_order_it_is_asked(
    responses, seed, count
):
    sheet, raters = drawn(responses, seed, count)
    judge = people.PeopleJudge(people.votes(sheet, raters))
    shown = {}  # the same texts may be there several times
    for item in sheet.items:
        prompt, first, second = sheet.texts(item)
        share = np.mean([rater.answers[item.id] for rater in raters])
        shown.setdefault((prompt, first, second), []).append(share)
        shown.setdefault((prompt, second, first), []).append(1 - share)
    asked = list(zip(*shown, strict=True))
    expected = [np.mean(shares) for shares in shown.values()]
    np.testing.assert_allclose(judge.compare(*asked), expected)
    np.testing.assert_allclose(judge.compare(asked[0], asked[2], asked[1]), 1 - np.array(expected))
    assert judge.votes == set(expected).issubset({0, 1})


def test_several_raters_make_shares_and_a_tie_is_half_a_vote():
    item = SHEET.items[0]
    raters = [Rater(str(n), {item.id: a}) for n, a in enumerate((FIRST, FIRST, TIE, SECOND))]
    judge = people.PeopleJudge(people.votes(SHEET, raters))
    prompt, first, second = SHEET.texts(item)
    assert judge.compare([prompt], [first], [second]) == [0.625]
    assert not judge.votes


def test_a_tournament_is_of_the_prompts_that_are_answered_whole():
    some = Rater("Ann", {item.id: FIRST for item in SHEET.items[:40]})
    prompts, players, judge = people.answered(SHEET, [some])
    whole = {
        number
        for number in range(20)
        if {item.id for item in SHEET.items if item.row == number} <= set(some.answers)
    }
    assert 0 < len(whole) < 20
    assert prompts == [SHEET.rows[number].prompt for number in sorted(whole)]
    assert tournament.play(prompts, players, judge).prompts == len(whole)
    open_row = next(row for n, row in enumerate(SHEET.rows) if n not in whole)
    with pytest.raises(UserError, match="nobody has compared"):
        judge.compare([open_row.prompt] * 2, open_row.responses[:2], open_row.responses[1:])
    with pytest.raises(UserError, match="no prompt of which every comparison"):
        people.answered(SHEET, [Rater("Ann", {SHEET.items[0].id: FIRST})])


@pytest.mark.parametrize("undecided", [False, True])
def test_texts_that_are_the_same_count_as_equal(undecided):
    responses = numbered(prompts=200)
    same = [(f"same {n}", f"text {n}") for n in range(200)]
    responses = {name: rows + same for name, rows in responses.items()}
    sheet = blind_sheet.draw(responses, 200, 0)
    rater = rater_of(sheet, who)
    if undecided:
        rater.answers[sheet.items[0].id] = TIE
    prompts, players, judge = people.answered(sheet, [rater])
    assert len(sheet.items) == 200 and len(prompts) > 300
    rate = tournament.play(prompts, players, judge).win_rates.between(NAMES[1], NAMES[0]).value
    equal = len(prompts) - 200
    if undecided:
        assert rate == pytest.approx((199.5 + equal / 2) / len(prompts))
    else:  # votes: a coin each
        coins = round(rate * len(prompts)) - 200
        assert stats.binomtest(coins, equal).pvalue > 1e-3


# --- training data -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(tables(), st.integers(0, 9), st.integers(1, 4))
def test_preferences_are_lines_that_raters_can_be_trained_on(
    tmp_path_factory, responses, seed, count
):
    sheet, raters = drawn(responses, seed, count)
    lines = people.preferences(people.votes(sheet, raters))
    expected = []
    for item in sheet.items:
        first, second = (sheet.rows[item.row].responses[player] for player in item.players)
        share = np.mean([rater.answers[item.id] for rater in raters])
        if share != 0.5 and first.strip() and second.strip():
            pair = (first, second) if share > 0.5 else (second, first)
            expected.append((sheet.rows[item.row].prompt, *pair, max(share, 1 - share)))
    if not expected:
        assert lines == []
        return
    path = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    found = [
        (row.prompt, row.chosen, row.rejected, row.weight)
        for row in json_lines.read(path, "preferences")
    ]
    assert sorted(found) == sorted(expected)


# --- what is said of them ------------------------------------------------------------------------


def test_the_summary_says_who_wins_whether_people_agree_and_what_order_does():
    always_first = Rater("Bob", {item.id: FIRST for item in SHEET.items})
    some = rater_of(SHEET, who, "Ann", every=2)
    lines = people.summary(SHEET, [some, always_first])
    assert lines[0] == "90 answers of 2 raters to 60 of 60 comparisons, on 20 of 20 prompts"
    low, high = stats.binomtest(60, 60).proportion_ci(method="exact")
    assert lines[2] == (
        "  Bob: 60 answers, 0 ties; what is shown first preferred in 60 of 60, 100.0%"
        f" ({low:.1%} to {high:.1%})"
    )
    # Where Ann has not answered, Bob's word stands; where she has said the other, it is a tie.
    wins = losses = ties = 0
    for item in SHEET.items:
        if set(item.players) == {0, 1}:
            zero_first = item.players == (0, 1)
            ann = some.answers.get(item.id)
            ties += ann == SECOND
            wins += ann != SECOND and zero_first
            losses += ann != SECOND and not zero_first
    low, high = stats.binomtest(wins, wins + losses).proportion_ci(method="exact")
    assert lines[3] == (
        f"{NAMES[0]} preferred to {NAMES[1]} in {wins} of {wins + losses},"
        f" {wins / (wins + losses):.1%} ({low:.1%} to {high:.1%}), and {ties} tie"
        + "s"
        * (ties != 1)
    )
    kappa = cohen_kappa_score(list(some.answers.values()) == np.array(FIRST), [True] * 30)
    assert f"agreement of Ann, Bob: Cohen's kappa {kappa:.2f}" in lines[6]
    assert lines[6].endswith("the same, on 30 comparisons")


def test_of_several_raters_all_and_every_two_are_measured_but_not_every_two_of_many():
    raters = [rater_of(SHEET, who, name) for name in "ABC"]
    lines = [line for line in people.summary(SHEET, raters) if line.startswith("agreement")]
    assert [line.split(":")[0][len("agreement of ") :] for line in lines] == [
        "A, B, C",
        "A, B",
        "A, C",
        "B, C",
    ]
    many = [rater_of(SHEET, who, name) for name in "ABCDEF"]
    assert sum(line.startswith("agreement") for line in people.summary(SHEET, many)) == 1


def test_raters_of_different_comparisons_and_of_one_kind_of_answer_are_told():
    one, other = Rater("A", {A: FIRST}), Rater("B", {B: FIRST})
    assert "no comparison in common" in "".join(people.summary(SHEET, [one, other]))
    again = Rater("C", {A: FIRST})
    assert "kappa is not defined" in "".join(people.summary(SHEET, [one, again]))
    assert f"{NAMES[0]} preferred to {NAMES[1]} in none of 0" in "\n".join(
        people.summary(SHEET, [Rater("A", {item.id: TIE for item in SHEET.items})])
    )
