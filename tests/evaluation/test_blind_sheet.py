import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import blind_sheet
from nlhf_jax.evaluation.blind_sheet import Sheet

NAMES = ("xylophone", "quagmire", "zeppelin")  # in no text, style or script of the page
NASTY = (
    "</script><script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "&lt;b&gt; {{ 7 * 7 }} {% raw %} ${1}",
    '=HYPERLINK("http://127.0.0.1:9/","x")',
    "a;=1+1\n@SUM(1)\r\n\t+1,-2",
    "<!-- \u2028 \u202e gnihton \x00 \x1b[31m",
    "",
)
# Whatever UTF-8 can hold.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(NASTY)
PROMPTS = TEXTS.filter(str.strip)


@st.composite
def tables(draw):
    """Responses of two or three players to the same prompts, of which some pair differs."""
    names = NAMES[: draw(st.integers(2, 3))]
    prompts = draw(st.lists(PROMPTS, min_size=1, max_size=4))
    found = {name: [(prompt, draw(TEXTS)) for prompt in prompts] for name in names}
    found[names[0]].append(("again", "one"))
    for name in names[1:]:
        found[name].append(("again", "another"))
    return found


def numbered(players=NAMES[:2], prompts=100):
    """Each response is said by one player alone, and says which."""
    return {
        name: [(f"prompt {n}", f"response {who}-{n}") for n in range(prompts)]
        for who, name in enumerate(players)
    }


class Page(HTMLParser):
    """The sheet in the page, its elements, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.data, self._script = [], "", None
        self.feed(page)
        self.sheet = json.loads(self.data)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._script = dict(attributes).get("id") if tag == "script" else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script == "sheet":
            self.data += data


def rows_of(table: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.decode("utf-8-sig"), newline="")))


# --- what is on it -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 9))
def test_page_table_and_key_hold_the_texts_whatever_they_are(responses, seed):
    sheet = blind_sheet.draw(responses, 100, seed)
    expected = [(item.id, *sheet.texts(item)) for item in sheet.items]
    page = Page(blind_sheet.page(sheet)).sheet
    assert page["id"] == sheet.id
    assert [tuple(item.values()) for item in page["items"]] == expected
    rows = rows_of(blind_sheet.table(sheet))
    assert tuple(rows[0]) == blind_sheet.COLUMNS
    assert [row["id"] for row in rows] == [item[0] for item in expected]
    for row, (_, *texts) in zip(rows, expected, strict=True):
        assert [row[name] for name in blind_sheet.COLUMNS[1:4]] == [
            blind_sheet.harmless(text) for text in texts
        ]


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 9))
def test_a_key_is_read_as_it_was_written(tmp_path_factory, responses, seed):
    path = tmp_path_factory.mktemp("key") / "sheet.key.json"
    sheet = blind_sheet.draw(responses, 100, seed)
    path.write_text(blind_sheet.key(sheet))
    assert blind_sheet.read_key(path) == sheet


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 9))
def test_each_prompt_has_every_two_responses_that_differ_once(responses, seed):
    sheet = blind_sheet.draw(responses, 100, seed)
    asked = [(item.row, frozenset(item.players)) for item in sheet.items]
    assert len(set(asked)) == len(asked)
    for number, row in enumerate(sheet.rows):
        for one in range(len(sheet.players)):
            for other in range(one):
                differ = row.responses[one].strip() != row.responses[other].strip()
                assert ((number, frozenset((one, other))) in asked) == differ
        for name, response in zip(sheet.players, row.responses, strict=True):
            assert (row.prompt, response) in responses[name]
    assert len(sheet.rows) == len(responses[sheet.players[0]])


def test_there_are_as_many_comparisons_as_asked_for_of_whole_prompts():
    for pairs in (3, 4, 30, 100):
        sheet = blind_sheet.draw(numbered(NAMES), pairs, 0)
        assert len(sheet.items) == pairs // 3 * 3
        assert len(sheet.rows) == pairs // 3
    assert len(blind_sheet.draw(numbered(NAMES), 10_000, 0).items) == 300


def test_prompts_that_not_all_have_answered_are_left_out_and_repeated_ones_are_paired_in_order():
    one = [("a", "a1"), ("b", "b1"), ("a", "a2"), ("a", "a3")]
    other = [("a", "x1"), ("a", "x2"), ("c", "c1")]
    sheet = blind_sheet.draw({"one": one, "other": other}, 9, 0)
    assert sorted((row.prompt, *row.responses) for row in sheet.rows) == [
        ("a", "a1", "x1"),
        ("a", "a2", "x2"),
    ]


@pytest.mark.parametrize(
    ("responses", "pairs", "message"),
    [
        ({"one": [("a", "b")]}, 9, "a sheet needs two players or more, each with a name"),
        (numbered(NAMES), 2, "--pairs is 2 but must be at least 3"),
        ({"one": [("a", "b")], "other": [("c", "d")]}, 9, "no prompt that all of one, other"),
        ({"one": [("a", "b")], "other": [("a", " b ")]}, 9, "there is nothing to compare"),
    ],
)
def test_what_is_no_comparison_is_refused(responses, pairs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        blind_sheet.draw(responses, pairs, 0)


# --- blinding ------------------------------------------------------------------------------------


def test_no_player_s_name_nor_the_seed_is_on_the_page_or_in_the_table():
    sheet = blind_sheet.draw(numbered(NAMES), 90, 918273)
    for content in (blind_sheet.page(sheet), blind_sheet.table(sheet).decode()):
        assert not any(secret in content.casefold() for secret in (*NAMES, "918273"))
        assert "response 1-" in content  # the texts are


def test_page_and_table_of_players_with_other_names_are_the_same():
    """So nothing in them depends on a name, not even by a hash."""
    one = blind_sheet.draw(numbered(NAMES[:2]), 50, 3)
    other = blind_sheet.draw(numbered(("b", "a")), 50, 3)
    assert blind_sheet.page(one) == blind_sheet.page(other)
    assert blind_sheet.table(one) == blind_sheet.table(other)
    assert blind_sheet.key(one) != blind_sheet.key(other)


def order(sheet: Sheet) -> np.ndarray:
    """Whether the earlier of two players is shown first, item by item."""
    return np.array([item.players[0] < item.players[1] for item in sheet.items])


def test_which_response_is_shown_first_is_a_coin_for_every_two_players():
    sheets = [blind_sheet.draw(numbered(NAMES, 200), 600, seed) for seed in range(5)]
    for pair in ((0, 1), (0, 2), (1, 2)):
        first = np.concatenate(
            [
                order(sheet)[[tuple(sorted(item.players)) == pair for item in sheet.items]]
                for sheet in sheets
            ]
        )
        assert len(first) == 1000
        assert stats.binomtest(int(first.sum()), len(first)).pvalue > 1e-3


def test_the_order_of_two_responses_says_nothing_of_the_next_nor_of_the_place_on_the_sheet():
    first = order(blind_sheet.draw(numbered(prompts=1000), 1000, 0))
    assert stats.binomtest(int((first[1:] == first[:-1]).sum()), 999).pvalue > 1e-3
    assert stats.mannwhitneyu(np.flatnonzero(first), np.flatnonzero(~first)).pvalue > 1e-3


def test_comparisons_are_in_no_order_of_the_files():
    sheet = blind_sheet.draw(numbered(prompts=300), 300, 0)
    place = [int(sheet.rows[item.row].prompt.split()[1]) for item in sheet.items]
    assert stats.spearmanr(place, range(300)).pvalue > 1e-3
    assert stats.spearmanr([item.row for item in sheet.items], range(300)).pvalue > 1e-3


def test_another_seed_draws_anew_and_the_same_one_does_not():
    one, again, other = (blind_sheet.draw(numbered(), 40, seed) for seed in (1, 1, 2))
    assert one == again
    assert {row.prompt for row in one.rows} != {row.prompt for row in other.rows}
    assert np.any(order(one) != order(other))
    assert one.id != other.id
    assert not {item.id for item in one.items} & {item.id for item in other.items}


def test_white_space_around_a_response_is_not_shown():
    responses = {"one": [("a", "  b\n")], "other": [("a", "c")]}
    sheet = blind_sheet.draw(responses, 9, 0)
    assert sorted(sheet.texts(sheet.items[0])[1:]) == ["b", "c"]
    assert sheet.rows[0].responses == ("  b\n", "c")


def test_a_name_that_stands_in_the_texts_is_told():
    responses = {
        "Nash": [("a", "As nash, I think")],
        "sft": [("a", "Nashville is far")],
        "I": [("a", "I")],
    }
    assert blind_sheet.told(blind_sheet.draw(responses, 9, 0)) == ["Nash"]


# --- what a text may not do ----------------------------------------------------------------------


def test_no_text_becomes_an_element_of_the_page():
    plain = Page(blind_sheet.page(blind_sheet.draw(numbered(prompts=len(NASTY)), 9, 0)))
    nasty = {
        "one": [(f"{text} x", text) for text in NASTY],
        "other": [(f"{text} x", text + "!") for text in NASTY],
    }
    sheet = blind_sheet.draw(nasty, 9, 0, "Which <b>one</b>?")
    page = blind_sheet.page(sheet)
    policy = "Content-Security-Policy"
    tags = [tag for tag, _ in Page(page).tags]
    assert tags == [tag for tag, _ in plain.tags]
    assert page.count("<script") == 2
    assert "Which &lt;b&gt;one&lt;/b&gt;?" in page
    assert [a for _, a in Page(page).tags if a.get("http-equiv") == policy] == [
        a for _, a in plain.tags if a.get("http-equiv") == policy
    ]


FORMULA = re.compile(r"[\t\r ]*[=+\-@＝＋－＠]")


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("=+-@;,\t\r\n '\"a1＝"), max_size=20) | TEXTS)
def test_no_spreadsheet_finds_a_formula_however_it_divides_the_table(text):
    """Whichever divider it takes and whether or not it minds quotation marks within a cell."""
    cell = blind_sheet.harmless(text)
    for piece in re.split(r"[;\t\r\n]", cell):
        assert not FORMULA.match(piece)
    assert cell.replace("'", "") == text.replace("'", "")
    assert blind_sheet.harmless("a - b, c=d") == "a - b, c=d"


# --- files ---------------------------------------------------------------------------------------


def test_responses_are_read_with_what_other_keys_a_line_has(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf"
        + b'{"prompt": "p", "completion": " c ", "log_probs": [0.5], "pieces": ["c"]}\n\n'
        + b'{"prompt": "p", "completion": ""}\n'
    )
    assert blind_sheet.read_responses(tmp_path / "a.jsonl") == [("p", " c "), ("p", "")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: not valid JSON"),
        (b'{"prompt": "p"}', "line 2: the key 'completion' is missing"),
        (b'{"completion": "p"}', "line 2: the key 'prompt' is missing"),
        (b'{"prompt": "p", "completion": 3}', "line 2: 'completion' must be text, met 3"),
        (b'{"prompt": " ", "completion": "c"}', "line 2: 'prompt' is empty"),
        (b'{"prompt": "\\ud800", "completion": "c"}', "line 2: 'prompt' holds half of a"),
    ],
)
def test_a_bad_line_of_responses_is_told_with_its_number(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "p", "completion": "c"}\n' + line)
    with pytest.raises(UserError, match=re.escape(f"a.jsonl, {message}")):
        blind_sheet.read_responses(tmp_path / "a.jsonl")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sheet": "a", "answers": []}'])
def test_what_is_no_key_is_told(tmp_path, content):
    (tmp_path / "key.json").write_text(content)
    with pytest.raises(UserError, match="key.json: "):
        blind_sheet.read_key(tmp_path / "key.json")


def test_a_damaged_key_is_told_whatever_is_gone(tmp_path):
    found = json.loads(blind_sheet.key(blind_sheet.draw(numbered(), 4, 0)))
    for name in set(found) - {"key_of"}:
        for value in (None, [], [[]], -1, "x"):
            if (name, value) in (("id", "x"), ("question", "x"), ("seed", -1)):
                continue
            (tmp_path / "key.json").write_text(json.dumps(found | {name: value}))
            with pytest.raises(UserError, match="key.json: "):
                blind_sheet.read_key(tmp_path / "key.json")


def test_the_key_of_a_sheet_that_is_out_is_not_written_over(tmp_path):
    blind_sheet.write(blind_sheet.draw(numbered(), 9, 0), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["sheet.csv", "sheet.html", "sheet.key.json"]
    blind_sheet.write(blind_sheet.draw(numbered(), 9, 0), tmp_path)
    with pytest.raises(UserError, match="is the key of another sheet; choose another --output"):
        blind_sheet.write(blind_sheet.draw(numbered(), 9, 1), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
