import csv
import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import tournament
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.judges import POPULATION
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.evaluation.votes import RaterAccuracy
from nlhf_jax.report import contents
from nlhf_jax.report.verdict import verdict
from nlhf_jax.report.writing import write_report
from tests.evaluation.games import referee

HOSTILE = 'a <script>alert("x")</script> | b & $run `c` *d*\nnext line'
FILES = {"report.html", "report.json", "report.md", "report.csv"}
RATERS = (
    RaterAccuracy(POPULATION, Estimate(0.8, 0.75, 0.85), 1200),
    RaterAccuracy("reward | <b>", Estimate(0.6, 0.54321, 0.66), 1200),
)


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_stage(workdir, name, steps=20, started=None):
    curve = [{"step": n, "split": "train", "loss": 3 / n, "kl": n / 9} for n in range(1, steps + 1)]
    check = [{"step": steps, "split": "validation", "examples": 7, "loss": 0.25}]
    data = [{"step": 0, "split": "data", "examples": 640, "inputs_cut": 3}]
    write_lines(workdir / name / "metrics.jsonl", data + curve + check)
    if started is not None:
        timing = {"started": started, "seconds": 192.0, "steps": steps, "steps_per_second": 4.5}
        (workdir / name / "timing.json").write_text(json.dumps(timing))


def write_tournament(workdir, prompts=12, raters=(), stage="tournament"):
    throws = ("rock", "paper", "scissors")
    players = {
        throw: Player([throw] * prompts, np.full(prompts, 2.0 * n), np.full(prompts, 4))
        for n, throw in enumerate(throws)
    }
    players["a|<b>"] = Player([""] + [HOSTILE] * (prompts - 1))
    asked = [f"{HOSTILE} {number}" for number in range(prompts)]
    references = [[HOSTILE, "rock"]] * prompts
    result = tournament.play(asked, players, referee(), references)
    result = dataclasses.replace(result, raters=raters)
    result.save(workdir / stage / "tournament.json")
    return result


class Page(html.parser.HTMLParser):
    """What a browser would see: tags opened and closed in order, links, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if text.strip() and self.open and self.open[-1] not in ("style", "script"):
            self.text += text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("work") / "my run"
    write_stage(workdir, "sft", started=2.0)
    write_stage(workdir, "a_later_stage", started=3.0)
    result = write_tournament(workdir, raters=RATERS)
    return workdir, result, write_report(workdir)


def test_one_file_holds_everything_and_reaches_for_nothing(run):
    page = Page(run[2].read_text())
    assert page.sources and all(x.startswith("#") for x in page.sources)  # its own sections
    assert not {"link", "iframe"} & set(page.tags)
    assert "url(" not in run[2].read_text() and "@import" not in run[2].read_text()


def test_text_of_users_and_models_is_shown_and_never_run(run):
    page = Page(run[2].read_text())
    assert page.text.count(HOSTILE) >= 2 * 6
    assert "a|<b>" in page.text
    assert "b" not in page.tags


def test_the_html_shows_every_cell_with_its_interval(run):
    text = Page(run[2].read_text()).text
    rates = run[1].win_rates
    for row in rates.names:
        for column in rates.names:
            if row != column:
                cell = rates.between(row, column)
                assert f"{cell.value:.3f}{cell.low:.3f}–{cell.high:.3f}" in text


def test_the_html_says_who_won_what_was_run_and_how_it_was_judged(run):
    text = Page(run[2].read_text()).text
    for sentence in (
        "No policy is preferred to every other one.",
        "The matrix goes in circles: rock beats scissors beats paper beats rock.",
        "rock has collapsed: only 8.3% of its responses are distinct.",
        "a|<b> answers with nothing to 8.3% of the prompts.",
        "3 min 12 s",
        "judge: preference of the population",
        "resampling prompts",
        "inputs_cut\N{NO-BREAK SPACE}3",
        "(empty)",
    ):
        assert sentence in text


def test_raters_stand_with_their_accuracy_and_its_share_of_the_population_s(run):
    text = Page(run[2].read_text()).text
    markdown = (run[0] / "report.md").read_text()
    for words in ("How raters predict votes", "the votes on 1,200 comparisons", "is the ceiling"):
        assert words in text and words in markdown
    assert "preference of the population0.8000.750–0.8501.000" in text
    assert "reward | <b>0.6000.543–0.6600.750" in text
    assert "| preference of the population | 0.800 (0.750–0.850) | 1.000 |" in markdown
    assert r"| reward \| \<b\> | 0.600 (0.543–0.660) | 0.750 |" in markdown


@pytest.mark.parametrize(
    "raters", [RATERS[1:], (dataclasses.replace(RATERS[0], accuracy=Estimate(0.0, 0.0, 0.0)),)]
)
def test_without_a_ceiling_raters_have_no_share_of_it(tmp_path, raters):
    write_tournament(tmp_path, raters=raters)
    text = Page(write_report(tmp_path).read_text()).text
    assert "How raters predict votes" in text
    for page in (text, (tmp_path / "report.md").read_text()):
        assert "share of the population" not in page.lower()


def test_the_game_between_the_policies_stands_in_both_texts(run):
    text = Page(run[2].read_text()).text
    markdown = (run[0] / "report.md").read_text()
    for words in ("The game between the policies", "Its Nash average is the mixture of policies"):
        assert words in text and words in markdown
    # "a|<b>" ties with every throw: the most even mixture is a quarter of each.
    assert "rock0.2500.250–0.2500.5000.500–0.5000.4000.400–0.400paper" in text
    assert "a|<b>0.2500.250–0.2500.5000.500–0.5000.0000.000–0.000none beats it" in text
    row = "| 0.250 (0.250–0.250) | 0.500 (0.500–0.500) | 0.400 (0.400–0.400) | paper |"
    assert f"| rock {row}" in markdown


def test_a_tournament_without_that_game_makes_a_report_without_it(tmp_path):
    result = write_tournament(tmp_path)
    result = dataclasses.replace(result, meta_game=None)
    result.save(tmp_path / "tournament" / "tournament.json")
    text = write_report(tmp_path).read_text()
    for page in (text, (tmp_path / "report.md").read_text()):
        assert "Who beats whom" in page and "The game between" not in page


def test_the_report_says_which_prompts_were_drawn_and_at_which_temperature(tmp_path):
    result = write_tournament(tmp_path)
    path = tmp_path / "tournament" / "tournament.json"
    for temperature, words in (
        (0.7, "π is the policy at temperature 0.7, as it was sampled, and μ is at 1."),
        (0.0, "its KL is the −log μ(y|x) of that"),
    ):
        drawn = {"prompts_in_split": 1700, "seed": 3, "temperature": temperature}
        dataclasses.replace(result, **drawn).save(path)
        text = Page(write_report(tmp_path).read_text()).text
        assert words in text
        assert "the same 12 prompts, drawn from 1,700 (seed 3), and every pair" in text


def test_stages_stand_in_the_order_in_which_they_ran(run):
    stages = json.loads((run[0] / "report.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["sft", "a_later_stage"]
    assert stages[0]["steps"] == 20
    assert stages[0]["last"]["validation"] == {"loss": 0.25}
    assert stages[0]["data"] == {"examples": 640, "inputs_cut": 3}


def test_the_json_holds_the_whole_tournament(run):
    held = json.loads((run[0] / "report.json").read_text())["tournament"]
    assert held == json.loads(run[1].to_json())


def test_the_csv_is_the_matrix_in_full_precision(run):
    with open(run[0] / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rates = run[1].win_rates
    assert len(rows) == 5 * 4
    for row in rows:
        cell = rates.between(row["row"], row["column"])
        numbers = [float(row[name]) for name in ("win_rate_of_row", "low", "high")]
        assert numbers == [cell.value, cell.low, cell.high]
        assert int(row["prompts"]) == rates.n


def test_markdown_tables_keep_their_columns_whatever_the_text(run):
    text = (run[0] / "report.md").read_text()
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        pipes = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(pipes) == 1
    assert "<script" not in text.replace(r"\<", "")
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (run[0] / link).read_bytes().startswith(b"\x89PNG")


def test_nothing_half_written_is_left_behind(run):
    made = {path.name for path in run[0].iterdir() if path.is_file()}
    assert made == FILES
    assert {path.suffix for path in (run[0] / "figures").iterdir()} == {".png"}


def test_a_second_report_is_the_same_report(run, tmp_path):
    again = write_report(run[0], tmp_path / "elsewhere")
    assert again.read_bytes() == run[2].read_bytes()


def test_learning_curves_alone_make_a_report(tmp_path):
    write_stage(tmp_path, "sft")
    page = Page(write_report(tmp_path).read_text())
    assert "Learning curves" in page.text
    assert "Who beats whom" not in page.text
    assert not (tmp_path / "report.csv").exists()
    assert json.loads((tmp_path / "report.json").read_text())["tournament"] is None


def test_a_tournament_alone_makes_a_report(tmp_path):
    write_tournament(tmp_path)
    page = Page(write_report(tmp_path).read_text())
    assert "Who beats whom" in page.text
    assert "Learning curves" not in page.text
    assert "How raters predict votes" not in page.text


def test_one_training_in_the_work_directory_itself_is_a_stage_of_its_name(tmp_path):
    write_stage(tmp_path, "only")
    write_report(tmp_path / "only")
    (stage,) = json.loads((tmp_path / "only" / "report.json").read_text())["stages"]
    assert stage["name"] == "only"


def test_a_directory_with_nothing_to_report_says_so(tmp_path):
    with pytest.raises(UserError, match="holds nothing to report") as error:
        write_report(tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no work directory .*missing"):
        write_report(tmp_path / "missing")


def test_a_line_of_metrics_that_is_no_json_is_named(tmp_path):
    write_stage(tmp_path, "sft")
    path = tmp_path / "sft" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"step": 3, "spl', *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3: expected a JSON object"):
        write_report(tmp_path)


def test_a_last_line_cut_short_by_a_kill_is_left_out(tmp_path):
    write_stage(tmp_path, "sft")
    with open(tmp_path / "sft" / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "split": "tr')
    (stage,) = contents.read_report(tmp_path).stages
    assert stage.steps == 20


def test_a_step_logged_again_after_a_restart_counts_once_with_its_later_value(tmp_path):
    records = [
        {"step": n, "split": "train", "loss": value} for n, value in [(1, 3), (2, 9), (2, 2)]
    ]
    write_lines(
        tmp_path / "sft" / "metrics.jsonl", [*records, {"step": 3, "split": "train", "loss": None}]
    )
    (stage,) = contents.read_report(tmp_path).stages
    steps, values = stage.curves["loss"]["train"]
    assert (steps.tolist(), values.tolist()) == ([1, 2], [3.0, 2.0])


def test_a_policy_that_beats_all_others_is_named_with_its_closest_rival(tmp_path):
    players = {
        "first": Player(["rock"] * 40),
        "second": Player(["scissors"] * 30 + ["rock"] * 10),
        "third": Player(["scissors"] * 40),
    }
    result = tournament.play([str(n) for n in range(40)], players, referee())
    cell = result.win_rates.between("first", "second")
    assert cell.value == pytest.approx(0.8)
    assert verdict(result)[0] == (
        "first is preferred to every other policy; the closest is second, beaten with 0.800"
        f" ({cell.low:.3f} to {cell.high:.3f})."
    )


def test_what_guards_said_of_a_training_is_a_warning(tmp_path):
    write_stage(tmp_path, "nash_md")
    alarms = [
        (8, {"kl_per_token": 5.5, "kl_per_token_limit": 3.0, "kl_per_token_warnings": 1.0}),
        (8, {"skipped": 1.0, "skipped_limit": 0.0, "skipped_warnings": 1.0}),
        (16, {"kl_per_token": 4.0, "kl_per_token_limit": 3.0, "kl_per_token_warnings": 2.0}),
    ]
    with (tmp_path / "nash_md" / "metrics.jsonl").open("a") as file:
        for step, numbers in alarms:
            file.write(json.dumps({"step": step, "split": "guards", **numbers}) + "\n")
    write_report(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["warnings"] == [
        "nash_md: the loss or its gradient is not finite, so the update is skipped (step 8).",
        "nash_md: the KL to the reference is 5.5 nats a token, above the limit of 3 (step 8, and "
        "again up to step 16).",
    ]
    for name in ("report.html", "report.md"):
        assert "the KL to the reference is 5.5 nats a token" in (tmp_path / name).read_text()


def test_a_training_that_was_continued_as_another_is_warned_of(tmp_path):
    write_stage(tmp_path, "sft")
    change = {"step": 40, "setting": "TAU", "then": 0.1, "now": 0.2, "accepted": True}
    (tmp_path / "sft" / "run.json").write_text(json.dumps({"changes": [change]}))
    write_report(tmp_path)
    warning = "sft was trained with TAU 0.1 up to step 40, and with 0.2 from there on."
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == [warning]
    assert warning in (tmp_path / "report.html").read_text()


def test_a_tournament_is_found_whatever_its_stage_is_called(tmp_path):
    write_tournament(tmp_path, stage="final")
    text = Page(write_report(tmp_path).read_text()).text
    assert "Who beats whom" in text and "final: " not in text
    assert json.loads((tmp_path / "report.json").read_text())["tournament"]["prompts"] == 12
    write_report(tmp_path / "final")
    assert (tmp_path / "final" / "report.csv").exists()


def test_of_several_tournaments_each_has_its_sections(tmp_path):
    for number, stage in enumerate(("by_people", "tournament", "early"), start=11):
        write_tournament(tmp_path, number, RATERS, stage)
    text = Page(write_report(tmp_path).read_text()).text
    names = ("tournament", "by_people", "early")
    places = [text.index(f"{name}: Who beats whom") for name in names]
    assert places == sorted(places) and "3 tournaments" in text
    for name in names:
        assert f"{name}: No policy is preferred to every other one." in text
        assert f"{name}: rock has collapsed" in text
        assert (tmp_path / "figures" / f"win_rates_{name}.png").exists()
    held = json.loads((tmp_path / "report.json").read_text())
    assert held["tournament"]["prompts"] == 12
    others = {name: one["prompts"] for name, one in held["other_tournaments"].items()}
    assert others == {"by_people": 11, "early": 13}
    with open(tmp_path / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [rows[n * 20]["tournament"] for n in range(3)] == list(names)


def test_runs_of_one_setting_have_a_table_of_their_own(tmp_path):
    prompts = [str(number) for number in range(20)]
    throws = {"A#0": "rock", "A#1": "rock ", "B#0": "paper", "B#1": "scissors", "SFT": "paper"}
    players = {
        name: Player([throw if n % 7 else "rock" for n in range(20)])
        for name, throw in throws.items()
    }
    tournament.play(prompts, players, referee()).save(tmp_path / "tournament.json")
    text = write_report(tmp_path).with_suffix(".md").read_text()
    section = text.split("## Over seeds")[1].split("\n## ")[0]
    assert "A (2), B (2)" in section
    assert "| row beats column | A | B | SFT |" in section


def test_measures_and_the_matrix_at_equal_length_are_printed(tmp_path):
    result = write_tournament(tmp_path)
    text = write_report(tmp_path).with_suffix(".md").read_text()
    at_equal = text.split("## Who beats whom at equal length")[1].split("\n## ")[0]
    cell = result.length_controlled.between("rock", "paper")
    assert f"{cell.value:.3f}** ({cell.low:.3f}–{cell.high:.3f})" in at_equal
    measures = text.split("## Other measures")[1].split("\n## ")[0]
    rock = next(line for line in measures.splitlines() if line.startswith("| rock "))
    player = next(player for player in result.players if player.name == "rock")
    assert f"{player.length_controlled.value:.3f}" in rock
    assert f"{player.text.novelty:.1%}" in rock and f"{player.text.distinct_1:.3f}" in rock
