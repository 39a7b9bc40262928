"""`nlhf config`: every setting, where it was set, and what it overrides."""

import gin
import pytest

from nlhf_jax import configuration
from nlhf_jax.configuration import effective, tables
from nlhf_jax.main import main

BASE = """# A run.
from __gin__ import dynamic_registration

from tests import gin_example

STEPS = %gin.REQUIRED  # how many
RATE = 0.1  # per step
KIND = "sp"

gin_example.learn:
    steps = %STEPS
    rate = %RATE
    kind = %KIND
gin_example.learn.sizes = @gin_example.Sizes()
"""
TOP = """from __gin__ import dynamic_registration

from tests import gin_example

include "base.gin"

RATE = 0.5
gin_example.learn.players = ["a|b", "c"]  # who plays
"""


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    (tmp_path / "base.gin").write_text(BASE)
    (tmp_path / "top.gin").write_text(TOP)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    gin.clear_config()


def found(*overrides, files=("top.gin",)):
    configuration.parse(files, overrides, complete=False)
    return {setting.name: setting for setting in effective.settings(files, overrides)}


def test_the_last_assignment_is_effective_and_the_others_are_named():
    rate = found("RATE=0.7")["RATE"]
    assert (rate.value, rate.place, rate.comment) == (0.7, "command line", "per step")
    overridden = [(earlier.value, earlier.place) for earlier in rate.overridden]
    assert overridden == [(0.5, "top.gin:7"), (0.1, "base.gin:7")]


def test_what_is_required_is_so_until_something_gives_a_value():
    assert found()["STEPS"].is_required and found()["STEPS"].comment == "how many"
    given = found("STEPS=3")["STEPS"]
    assert not given.is_required and given.value == 3 and not given.overridden


def test_bindings_beside_the_macros_are_settings_too():
    settings = found()
    assert settings["gin_example.learn.players"].place == "top.gin:8"
    assert settings["gin_example.learn.steps"].value == "%STEPS"
    assert settings["gin_example.learn.sizes"].value == "@gin_example.Sizes()"


@pytest.mark.parametrize("name", ["tldr/nash_md.gin", "mini/sft.gin", "runs/tournament.gin"])
def test_the_values_are_those_that_gin_has(name):
    configuration.parse([name], complete=False)
    for setting in effective.settings([name]):
        if setting.is_macro and not str(setting.value).startswith(("%", "@")):
            assert configuration.macro(setting.name) == setting.value, setting.name


def test_the_terminal_shows_what_is_missing_first(capsys):
    assert main(["config", "--gin_file=top.gin", "--gin.KIND='md'"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("required") and lines[1].split()[0] == "STEPS"
    assert "  RATE  0.5                                           top.gin:7" in lines
    assert "      overrides 'sp' of base.gin:8" in lines
    assert not any("learn.steps" in line for line in lines)  # passes a macro on
    assert any("gin_example.learn.players" in line for line in lines)
    assert max(map(len, lines)) <= 120


def test_markdown_is_a_table_whose_cells_stay_cells(capsys):
    assert main(["config", "--gin_file=top.gin", "--markdown"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "| `STEPS` |  | how many | `base.gin:6` |" in rows
    assert "| `RATE` | `0.5` | per step; overrides 0.1 of base.gin:7 | `top.gin:7` |" in rows
    players = next(row for row in rows if "players" in row)
    assert r"['a\|b', 'c']" in players


def test_a_chain_shows_its_stages(capsys):
    assert main(["config", "--gin_file=quickstart.gin"]) == 0
    out = capsys.readouterr().out
    stages = out[out.index("\nstages\n") :]
    assert "nash_md        train     mini/nash_md.gin" in stages
    assert "given %POLICY" in stages


@pytest.mark.parametrize("how", [[], ["--markdown"]])
def test_of_stages_that_a_function_makes_it_shows_the_function(capsys, how):
    for file in ("exploit.gin", "studies/paper_table_small.gin"):
        assert main(["config", f"--gin_file={file}", *how]) == 0
        assert "stages()" in capsys.readouterr().out


def test_a_bad_file_is_one_sentence(capsys):
    assert main(["config", "--gin_file=none.gin"]) == 2
    assert "the gin file none.gin does not exist" in capsys.readouterr().err
    assert main(["config", "--gin_file=top.gin", "--gin.RAET=1"]) == 2
    assert "did you mean 'RATE'?" in capsys.readouterr().err


def test_tables_of_nothing_are_empty():
    assert tables.terminal([]).strip() == "" and tables.markdown([]).strip() == ""


def test_a_stage_that_may_be_left_out_shows_its_condition(capsys):
    assert main(["config", "--gin_file=json_lines.gin"]) == 0
    condition = "only if @datasets.has_halves(), else preference stands in"
    assert condition in capsys.readouterr().out
    assert main(["config", "--gin_file=json_lines.gin", "--markdown"]) == 0
    assert f"| judge ({condition}) |" in capsys.readouterr().out
