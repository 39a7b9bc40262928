"""Gin with T5X's manners, and one sentence for everything that a user can get wrong."""

import os

import gin
import pytest

from nlhf_jax import configuration
from nlhf_jax.configuration.value_types import describe_type, fits
from nlhf_jax.errors import UserError
from tests import gin_example
from tests.gin_example import Sizes

RUN = """
from __gin__ import dynamic_registration
from tests import gin_example
include "sizes/tiny.gin"

TRAIN_STEPS = %gin.REQUIRED
SEED = 0
LENGTHS = {"inputs": 8}

gin_example.learn.sizes = @gin_example.Sizes()
gin_example.learn.steps = %TRAIN_STEPS
gin_example.learn.lengths = %LENGTHS
"""

SIZES = """
from __gin__ import dynamic_registration
from tests import gin_example
gin_example.Sizes.emb_dim = 16
"""


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """`run.gin` in the working directory, the file that it includes on a search path."""
    (tmp_path / "work").mkdir()
    (tmp_path / "library" / "sizes").mkdir(parents=True)
    (tmp_path / "work" / "run.gin").write_text(RUN)
    (tmp_path / "library" / "sizes" / "tiny.gin").write_text(SIZES)
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path
    gin.clear_config()


def parse(*overrides, files=("run.gin",), **settings):
    configuration.parse(files, overrides, **({"search_paths": ["../library"]} | settings))


def write(name, content):
    with open(name, "w", encoding="utf-8") as file:
        file.write(content)


def error(*overrides, **settings):
    """The one sentence that a user gets to see."""
    with pytest.raises(UserError) as raised:
        parse(*overrides, **settings)
    text = configuration.message(raised.value)
    assert "\n" not in text
    return text


def test_a_function_gets_what_files_and_overrides_say(tmp_path):
    parse("TRAIN_STEPS=7", "gin_example.learn.rate=0.5", "learn.kind='md'")
    assert configuration.run(gin_example.learn, tmp_path / "out") == {
        "workdir": tmp_path / "out",
        "sizes": Sizes(16),
        "steps": 7,
        "rate": 0.5,
        "kind": "md",
        "lengths": {"inputs": 8},
        "players": (),
    }


def test_a_second_parse_knows_nothing_of_the_first():
    parse("TRAIN_STEPS=7", "learn.rate=0.5")
    parse("TRAIN_STEPS=8")
    assert configuration.run(gin_example.learn, "out")["rate"] == 0.1


def test_later_files_win():
    write("more.gin", "TRAIN_STEPS = 9\n")
    parse(files=("run.gin", "more.gin"))
    assert configuration.macro("TRAIN_STEPS") == 9


def test_macros_can_be_given_as_python_values():
    parse(macros={"TRAIN_STEPS": 7, "LENGTHS": {"targets": 4}})
    assert configuration.run(gin_example.learn, "out")["lengths"] == {"targets": 4}


def test_the_work_directory_is_a_macro_where_a_file_speaks_of_it():
    parse("TRAIN_STEPS=7", workdir="out")
    assert configuration.macro("WORKDIR") is None
    write("more.gin", "WORKDIR = %gin.REQUIRED\nOTHER = %WORKDIR\n")
    parse("TRAIN_STEPS=7", files=("run.gin", "more.gin"), workdir="out")
    assert configuration.macro("WORKDIR") == "out"


def test_both_configurations_that_are_written_give_the_same_call_again(tmp_path):
    """As parsed, while the job runs; the operative one, with the code's defaults, after it."""
    parse("TRAIN_STEPS=7", "learn.players=['a', 'b']")
    as_parsed = configuration.text()
    result = configuration.run(gin_example.learn, "out")
    operative = (tmp_path / "work" / "out" / "config.gin").read_text()
    assert "rate = 0.1" in operative and "rate" not in as_parsed
    for content in (as_parsed, operative):
        write("again.gin", content)
        parse(files=("again.gin",))
        assert configuration.run(gin_example.learn, "out") == result


def test_strings_are_replaced_wherever_they_are_bound():
    parse("TRAIN_STEPS=7", "learn.players=['stage:sft', 'other']")
    seen = []
    configuration.replace_strings(lambda text: seen.append(text) or text.replace("stage:", "out/"))
    assert configuration.run(gin_example.learn, "out")["players"] == ["out/sft", "other"]
    assert "stage:sft" in seen


# --- what users get wrong ------------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_places_looked_in():
    text = error(files=("runn.gin",))
    assert text.startswith("the gin file runn.gin does not exist (looked in ., ../library, ")
    assert text.endswith("gin_configs)")


def test_a_missing_included_file_is_named_with_the_line():
    assert error(search_paths=()) == "run.gin, line 4: the gin file sizes/tiny.gin does not exist"


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("A = 1\nB = = 2\n", 2, ""),
        ("A = 1\nB = [1, 2\n", 3, "bracket or quote left open"),
        ("A = 1\n\nB\n", 3, ""),
        ("A = tldr_mini\n", 1, ""),
    ],
)
def test_a_syntax_error_names_file_and_line(content, line, reason):
    write("bad.gin", content)
    text = error(files=("bad.gin",))
    assert text.startswith(f"bad.gin, line {line}: ")
    assert reason in text


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "work" / "bad.gin").write_bytes(b"\xff\xfe\x00\x81")
    assert error(files=("bad.gin",)) == "bad.gin is not a gin file: it is not text"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("gin_example.learn.step = 3", "has no parameter 'step'; did you mean 'steps'?"),
        ("gin_example.laern.steps = 3", "tests.gin_example has no 'laern'; did you mean 'learn'?"),
        ("other.learn.steps = 3", "'other' was not provided by an import statement"),
        ("import tests.nowhere", "No module named 'tests.nowhere'"),
    ],
)
def test_an_unknown_name_is_named_with_file_and_line(line, reason):
    write("bad.gin", SIZES + line + "\n")
    text = error(files=("bad.gin",))
    assert text.startswith("bad.gin, line 5: ")
    assert text.endswith(reason)


def test_a_required_value_is_asked_for_by_the_option_that_sets_it():
    assert error() == "TRAIN_STEPS has no value: set it with --gin.TRAIN_STEPS=..."


def test_all_required_values_are_asked_for_at_once():
    write("more.gin", SIZES + "BATCH_SIZE = %gin.REQUIRED\ngin_example.learn.kind = %gin.REQUIRED")
    assert error(files=("run.gin", "more.gin")) == (
        "TRAIN_STEPS, BATCH_SIZE, gin_example.learn.kind have no value: set them with "
        "--gin.TRAIN_STEPS=... --gin.BATCH_SIZE=... --gin.gin_example.learn.kind=..."
    )


def test_a_parameter_that_nothing_sets_is_named():
    write("bare.gin", RUN.replace('include "sizes/tiny.gin"', ""))
    assert error("TRAIN_STEPS=3", files=("bare.gin",)) == (
        "gin_example.Sizes.emb_dim has no value, and gin_example.learn.sizes needs "
        "@gin_example.Sizes(): set it in the gin file"
    )
    write("empty.gin", "")
    parse(files=("empty.gin",))
    with pytest.raises(UserError, match=r"learn\.sizes has no value"):
        configuration.run(gin_example.learn, "out")
    assert not os.path.exists("out")


def test_an_undefined_macro_is_named_where_it_is_used():
    write("more.gin", SIZES + "gin_example.learn.kind = %KIND\n")
    assert error("TRAIN_STEPS=3", files=("run.gin", "more.gin")) == (
        "gin_example.learn.kind is %KIND, but no gin file defines the macro KIND: "
        "set it with --gin.KIND=..."
    )
    write("more.gin", SIZES + "gin_example.learn.kind = [%SED]\n")
    assert error("TRAIN_STEPS=3", files=("run.gin", "more.gin")).endswith("did you mean 'SEED'?")


def test_an_override_of_a_macro_that_no_file_mentions_is_an_error():
    assert error("TRAIN_STEP=3") == (
        "no gin file speaks of the macro TRAIN_STEP that is to be set; did you mean 'TRAIN_STEPS'?"
    )
    assert error("TRAIN_STEPS=3", macros={"SEDE": 3}) == (
        "no gin file speaks of the macro SEDE that is to be set; did you mean 'SEED'?"
    )


def test_an_override_that_is_only_used_may_be_defined_on_the_command_line():
    write("more.gin", SIZES + "gin_example.learn.kind = %KIND\n")
    parse("TRAIN_STEPS=3", "KIND='md'", files=("run.gin", "more.gin"))
    assert configuration.run(gin_example.learn, "out")["kind"] == "md"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("learn.step=3", "learn has no parameter 'step'; did you mean 'steps'?"),
        ("laern.steps=3", "nothing in the gin files is called 'laern'; did you mean 'learn'?"),
        ("TRAIN_STEPS=", "is not NAME=value in gin's syntax"),
        ("TRAIN_STEPS=[1, 2", "is not NAME=value in gin's syntax"),
        ("TRAIN STEPS=3", "is not a name"),
        ("SEED=tldr_mini", "a text needs quotes, write --gin.SEED='\"tldr_mini\"'"),
        ("SEED=/data/a.jsonl", "a text needs quotes, write --gin.SEED='\"/data/a.jsonl\"'"),
    ],
)
def test_a_malformed_override_is_quoted_back(override, reason):
    text = error(override)
    assert text.startswith(f"--gin.{override.partition('=')[0]}")
    assert reason in text


@pytest.mark.parametrize("value", ["-5", "1e-3", ".5", "None", "True", "(1, 2)", "'text'"])
def test_gins_own_values_need_no_quotes(value):
    parse("TRAIN_STEPS=3", f"SEED={value}")
    assert configuration.macro("SEED") == eval(value)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("TRAIN_STEPS='ten'", "TRAIN_STEPS is 'ten' but must be int for gin_example.learn.steps"),
        ("learn.rate='x'", "gin_example.learn.rate is 'x' but must be float"),
        ("learn.kind='mp'", "gin_example.learn.kind is 'mp' but must be one of 'sp', 'md'"),
        ("learn.players='abc'", "gin_example.learn.players is 'abc' but must be a list of str"),
        (
            "LENGTHS={'inputs': 'long'}",
            "LENGTHS is {'inputs': 'long'} but must be a dict from str to int or None for "
            "gin_example.learn.lengths",
        ),
        ("Sizes.emb_dim=1.5", "gin_example.Sizes.emb_dim is 1.5 but must be int"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error(override, text):
    overrides = [override] if "TRAIN_STEPS" in override else ["TRAIN_STEPS=3", override]
    assert error(*overrides) == text


def test_an_error_from_inside_a_configured_call_keeps_its_one_sentence():
    write(
        "fail.gin",
        "from __gin__ import dynamic_registration\nfrom tests import gin_example\n"
        "gin_example.fail.line = 5\n",
    )
    parse(files=("fail.gin",))
    with pytest.raises(UserError) as raised:
        configuration.run(gin_example.fail, "out")
    assert configuration.message(raised.value) == "data.jsonl, line 5: no prompt"


@pytest.mark.parametrize(
    ("value", "annotation", "yes"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (1.0, int, False),
        (None, int | None, True),
        ("a", int | None, False),
        ([1, 2], tuple[int, ...], True),
        ([1, "a"], list[int], False),
        ((1, "a"), tuple[int, str], True),
        ((1,), tuple[int, str], False),
        ("abc", list[str], False),
        ({"a": 1}, dict[str, int], True),
        ({"a": 1}, dict, True),
        ([1], dict, False),
        ("path", os.PathLike, True),  # what is no plain type is not judged
        (object(), int, True),
    ],
)
def test_plain_types_are_compared(value, annotation, yes):
    assert fits(value, annotation) is yes


def test_types_read_well():
    assert describe_type(dict[str, int] | None) == "a dict from str to int or None"
    assert describe_type(tuple[str, ...]) == "a list of str"
