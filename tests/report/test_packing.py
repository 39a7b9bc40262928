"""What the sample browser gets: see test_sample_browser.py for what it makes of it."""

import base64
import dataclasses
import json
import zlib

import numpy as np
import pytest

from nlhf_jax.report import browser
from tests.report import browsing
from tests.report.test_report import write_stage, write_tournament

PLAYERS = ("SFT", "Nash-MD", "reference")


def unpacked(packed: browser.Packed) -> dict:
    return json.loads(zlib.decompress(base64.b64decode(packed.text)))


@pytest.fixture(scope="module")
def kept():
    return browsing.spiced(browsing.browsed(PLAYERS, 40))


def test_where_not_all_prompts_have_room_those_kept_are_spread_evenly(kept):
    whole = browser.pack(kept, 10**9)
    assert whole.kept == 40 and unpacked(whole)["numbers"] == list(range(1, 41))
    some = browser.pack(kept, len(whole.text) // 2)
    assert len(some.text) <= len(whole.text) // 2 and 10 < some.kept < 25
    tree = unpacked(some)
    assert len(tree["numbers"]) == len(tree["samples"]) == some.kept
    assert set(np.diff([0, *tree["numbers"], 41])) <= {1, 2, 3}
    for number, (prompt, references, _, _) in zip(tree["numbers"], tree["samples"], strict=True):
        assert prompt == kept.prompts[number - 1]
        assert tuple(references) == kept.references[number - 1]
    assert all(len(row) in (0, some.kept) for judge in tree["orders"] for row in judge)
    assert browser.pack(kept, 1).kept == 1


def test_half_a_character_does_not_stop_a_report(kept):
    """Python reads `\\ud83d` of a JSON file as it stands; no page can hold it."""
    responses = {name: list(given) for name, given in kept.responses.items()}
    responses["SFT"][0] = browser.Response("duck \ud83d", ("duck", " \ud83d"), (0.0, 0.0))
    tree = unpacked(browser.pack(dataclasses.replace(kept, responses=responses), 10**9))
    assert tree["samples"][0][2][0] == "duck ?"


@pytest.mark.parametrize(
    "change",
    [
        {"references": ()},
        {"players": ("SFT", "Nash-MD")},
        {"players": ("SFT", "SFT", "reference")},
        {"prompts": ("one",)},
        {"orders": {"judge": np.zeros((40, 3, 2))}},
        {"orders": {"judge": np.full((40, 3, 3), 1.5)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_data_that_does_not_fit_together_is_refused(kept, change):
    with pytest.raises(ValueError):
        dataclasses.replace(kept, **change)


def test_log_ratios_of_other_tokens_than_the_pieces_are_refused(kept):
    responses = {**kept.responses, "SFT": [browser.Response("a", ("a",), (0.0, 1.0))] * 40}
    with pytest.raises(ValueError, match="SFT has log ratios of other tokens"):
        dataclasses.replace(kept, responses=responses)


def test_a_page_of_1000_prompts_and_8_players_is_below_5_megabytes(tmp_path):
    """Texts as long as TL;DR's, 24 to 50 tokens a response, two judges, eight stages of curves."""
    names = tuple(f"policy {n}" for n in range(8))
    kept = browsing.browsed((*names, "reference"), 1000, (24, 51), words_each=260)
    assert sum(map(len, kept.prompts)) > 1_200_000
    for n in range(8):
        write_stage(tmp_path, f"stage_{n}", steps=1000)
    write_tournament(tmp_path)
    text = browsing.page(tmp_path, {"tournament": kept})
    assert len(text.encode()) < 5_000_000
    assert "spread evenly: with all of them" not in text  # none was left out for it
