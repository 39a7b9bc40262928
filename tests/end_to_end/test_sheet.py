"""`nlhf sheet`: from files of responses to votes that a rater is trained on."""

import json
import re
from pathlib import Path

import pytest

from nlhf_jax import main
from nlhf_jax.data import json_lines
from nlhf_jax.evaluation import blind_sheet
from tests.evaluation.test_people import better, exported, filled_in


@pytest.fixture
def nlhf(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main.main(["sheet", *arguments])
        return code, *capsys.readouterr()

    return call


def write_responses(name, responses):
    lines = [json.dumps({"prompt": f"post {n}", "completion": r}) for n, r in enumerate(responses)]
    Path(f"{name}.jsonl").write_text("\n".join(lines))


@pytest.fixture
def made(nlhf):
    """A sheet of up to 60 comparisons; some responses are the same texts."""
    write_responses("sft", ["short"] * 50)
    write_responses("nash", [f"a longer one {n}" if n % 10 else "short" for n in range(50)])
    write_responses("rlhf", [f"the very longest one {n}" for n in range(45)])
    players = [f"{name}:{name}.jsonl" for name in ("sft", "nash", "rlhf")]
    code, stdout, stderr = nlhf("make", *players, "--pairs=60", "--output=out", "--seed=4")
    assert (code, stderr) == (0, "")
    assert "out/sheet.html, out/sheet.csv: " in stdout
    return blind_sheet.read_key("out/sheet.key.json")


def test_people_s_answers_become_votes(nlhf, made):
    answers = {item.id: better(made, item, len) for item in made.items}
    Path("ann.json").write_text(exported(made, answers, ""))
    Path("bob.csv").write_bytes(filled_in(made, answers))
    code, stdout, stderr = nlhf(
        "read", "ann.json", "bob.csv", "--key=out/sheet.key.json", "--output=votes.jsonl"
    )
    assert (code, stderr) == (0, "")
    assert f"{2 * len(made.items)} answers of 2 raters" in stdout
    assert re.search(r"sft preferred to rlhf in 0 of \d+, 0.0% \(0.0% to ", stdout)
    assert "agreement of ann, bob: Cohen's kappa 1.00 (1.00 to 1.00); 100.0% the same" in stdout
    votes = json_lines.read("votes.jsonl", "preferences")
    assert len(votes) == len(made.items)
    assert all(len(vote.chosen) > len(vote.rejected) and vote.weight == 1 for vote in votes)


def test_what_is_not_on_the_sheet_is_said(nlhf):
    write_responses("one", ["same", "same", "x", "I am player_two"])
    write_responses("two", ["same", "same", "y", "z"])
    arguments = ("make", "one:one.jsonl", "player_two:two.jsonl", "--pairs=9", "--output=out")
    code, stdout, stderr = nlhf(*arguments)
    assert code == 0
    assert "2 comparisons of one and the same text are not on the sheet" in stdout
    assert "there were no prompts for more, so these are not 9" in stdout
    assert stderr.startswith("nlhf: warning: player_two stands in texts on the sheet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("make", "a:a.jsonl", "--pairs=3"), "nlhf sheet make needs --output=..."),
        (("make", "a:a.jsonl", "--output=o"), "nlhf sheet make needs --pairs=..."),
        (("make", "a:a", "--pairs=3", "--output=o", "--key=k"), "--key says nothing to nlhf sheet"),
        (("make", "a.jsonl", "--pairs=3", "--output=o"), "'a.jsonl' must be NAME:FILE, for exam"),
        (("make", "a:sft.jsonl", "a:sft.jsonl", "--pairs=3", "--output=o"), "'a' is given twice"),
        (("make", "a:none.jsonl", "b:b", "--pairs=3", "--output=o"), "none.jsonl: cannot read the"),
        (("make", "a:sft.jsonl", "b:nash.jsonl", "--pairs=0", "--output=o"), "--pairs is 0 but"),
        (
            ("make", "a:sft.jsonl", "b:nash.jsonl", "--pairs=5", "--question= ", "--output=o"),
            "--question is empty",
        ),
        (
            ("make", "a:sft.jsonl", "b:nash.jsonl", "--pairs=5", "--output=out"),
            "out/sheet.key.json is the key of another sheet",
        ),
        (("read", "a.json"), "nlhf sheet read needs --key=..."),
        (("read", "a.json", "--key=k", "--seed=1"), "--seed says nothing to nlhf sheet read"),
        (("read", "a.json", "--key=out/sheet.html"), "out/sheet.html: not valid JSON"),
        (("read", "out/sheet.csv", "--key=out/sheet.key.json"), "there are no answers in it"),
        (("read", "out/sheet.key.json", "--key=out/sheet.key.json"), "wanted answers that came"),
        (("read", "a.json", "--key=out/sheet.key.json"), "a.json: cannot read the answers"),
        (("write", "a.json"), "invalid choice: 'write'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(nlhf, made, arguments, message):
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    code, stdout, stderr = nlhf(*arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("nlhf: error: ") and stderr.count("\n") == 1
    assert message in stderr
    assert not Path("o").exists()
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
