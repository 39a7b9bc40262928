"""What must come of each nasty case: nothing lost, or one sentence."""

import pytest

from nlhf_jax.errors import printable
from nlhf_jax.main import main
from tests.nasty import corpus
from tests.nasty.readers import READERS, REFUSED, outcome, write

CASES = corpus.cases()


def test_there_are_enough_of_them_and_some_for_every_reader():
    assert len(CASES) >= 80
    assert len({(case.reader, case.name) for case in CASES}) == len(CASES)
    assert {case.reader for case in CASES} >= READERS.keys() - {"prompts, JSON lines"}


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_reader_accepts_its_good_example(name):
    assert outcome(READERS[name], READERS[name].good()) == ("accepted", "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.reader}: {case.name}")
def test_a_nasty_case_is_accepted_whole_or_refused_in_one_sentence(case):
    met, said = outcome(READERS[case.reader], case.all_files())
    assert met == case.wanted, said
    if met == REFUSED:
        assert case.words in said
        assert "\n" not in said and len(said) < 1500
        assert "Traceback" not in said
        printable(said).encode("utf-8")  # a terminal can print it


# --- through the command line --------------------------------------------------------------------

# What `main` is given for a reader's directory.
COMMANDS = {
    "lines of sft": ["data", "check", "sft:{}/user.jsonl"],
    "lines of preferences": ["data", "check", "preferences:{}/user.jsonl"],
    "vocabulary": ["data", "check", "sft:{}/good.jsonl", "--vocabulary={}/words.model"],
    "gin": ["config", "--gin_file={}/user.gin", "--gin_search_paths={}"],
    "tournament.json": ["report", "--workdir={}"],
    "metrics.jsonl": ["report", "--workdir={}"],
    "checkpoint: huggingface": ["convert", "--checkpoint={}", "--output={}/out", "--to=t5x"],
}
REFUSALS = [case for case in CASES if case.wanted == REFUSED and case.reader in COMMANDS]


def run(arguments, capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = main(arguments)
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return code, "".join(line for line in errors.splitlines() if line.startswith("nlhf: error: "))


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case.reader}: {case.name}")
def test_the_command_line_refuses_it_with_one_sentence_and_exit_code_2(case, tmp_path, capsys):
    write(
        tmp_path, {**case.all_files(), "good.jsonl": READERS["lines of sft"].good()["user.jsonl"]}
    )
    arguments = [part.replace("{}", str(tmp_path)) for part in COMMANDS[case.reader]]
    code, said = run(arguments, capsys)
    assert code == 2 and said
    said.encode("utf-8")


@pytest.mark.parametrize(
    "name",
    ["", ".", "-", "../x", "/", "/dev/null", "~", "a\0b", "a" * 5000, "a/" * 2000, "\udcff", "%s",
     "{x}", "gs:", "file://x", "a\nb", "\x1b[31m", "\u202ex", "#best", "stage:sft"],
)  # fmt: skip
@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "check", "sft:{}"],
        ["data", "check", "sft:good.jsonl", "--vocabulary={}"],
        ["config", "--gin_file={}"],
        ["report", "--workdir={}"],
    ],
    ids=lambda arguments: arguments[0] + arguments[-1],
)
def test_a_name_that_is_no_file_s_is_refused(arguments, name, tmp_path, monkeypatch, capsys):
    write(tmp_path, {"good.jsonl": READERS["lines of sft"].good()["user.jsonl"]})
    monkeypatch.chdir(tmp_path)
    if name == "" and "--vocabulary={}" in arguments:
        return  # as if it were not there
    code, said = run([part.replace("{}", name) for part in arguments], capsys)
    assert code == 2 and said
    assert printable(said) == said  # nothing that a terminal would obey
