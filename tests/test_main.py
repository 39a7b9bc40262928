"""The command line: explains itself, names what is wrong, and exits as it should."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gin
import pytest

from nlhf_jax import commands, main
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import chain
from nlhf_jax.train import Preempted, TrainingDiverged
from tests import gin_example

REPOSITORY = Path(__file__).resolve().parents[1]
RUN = """
from __gin__ import dynamic_registration
from tests import gin_example
TRAIN_STEPS = %gin.REQUIRED
gin_example.train_stage.steps = %TRAIN_STEPS
"""
CHAIN = """
from __gin__ import dynamic_registration
from nlhf_jax.jobs import chain
SFT_STEPS = 3
chain.run.stages = [
    {"name": "sft", "job": "train", "gin_file": "run.gin", "macros": {"TRAIN_STEPS": %SFT_STEPS}},
    {"name": "report", "job": "report"},
]
"""


class Jobs:
    """In place of `nlhf_jax.jobs`."""

    train = staticmethod(gin_example.train_stage)
    evaluate = staticmethod(gin_example.evaluate_stage)
    sample = staticmethod(gin_example.sample)
    prompt_form = staticmethod(gin_example.prompt_form)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    (tmp_path / "run.gin").write_text(RUN)
    (tmp_path / "chain.gin").write_text(CHAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_jobs", lambda: Jobs)
    for job in ("train", "evaluate"):
        monkeypatch.setitem(chain.JOBS, job, f"tests.gin_example:{job}_stage")
    monkeypatch.setitem(chain.JOBS, "report", "tests.gin_example:write_report")
    gin_example.CALLS.clear()
    yield tmp_path
    gin.clear_config()


@pytest.fixture
def nlhf(capsys):
    """Runs a command line; returns exit code, standard output and standard error."""

    def call(*arguments):
        code = main.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def error_of(nlhf, *arguments):
    code, _, stderr = nlhf(*arguments)
    assert code == 2
    assert stderr.startswith("nlhf: error: ") and stderr.count("\n") == 1
    return stderr.removeprefix("nlhf: error: ").strip()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_the_command_alone_explains_itself_with_an_example(nlhf, arguments):
    code, stdout, _ = nlhf(*arguments)
    assert code == 0
    assert "nlhf run --gin_file=quickstart.gin --workdir=out" in stdout
    for job in ("run", "train", "evaluate", "sample", "report", "sheet", "data"):
        assert f"\n  {job} " in stdout


@pytest.mark.parametrize("job", ["run", "train", "evaluate", "sample", "report", "sheet", "data"])
def test_every_job_explains_itself_with_an_example(capsys, job):
    with pytest.raises(SystemExit) as raised:
        main.main([job, "--help"])
    assert raised.value.code == 0
    assert f"example:\n  nlhf {job} " in capsys.readouterr().out


def test_help_is_quick_and_the_module_is_a_program():
    def seconds():
        start = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "nlhf_jax.main", "--help"],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
        )
        return time.monotonic() - start

    assert min(seconds() for _ in range(3)) < 0.5


_DEVICES = """\
import argparse, os
from nlhf_jax import commands
commands._configure_jax(argparse.Namespace())
import jax
print(jax.device_count(), os.environ.get("PJRT_NPROC"))
"""


@pytest.mark.parametrize(("asked", "told"), [(None, "1 None"), ("3", "3 12")])
def test_a_cpu_is_one_device_unless_the_user_says_more_which_have_threads_to_spare(asked, told):
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    environment |= {} if asked is None else {"JAX_NUM_CPU_DEVICES": asked}
    command = [sys.executable, "-c", _DEVICES]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == told


def test_train_runs_the_configured_job(nlhf):
    code, _, stderr = nlhf("train", "--gin_file=run.gin", "--gin.TRAIN_STEPS=4", "--workdir=out")
    assert (code, stderr) == (0, "")
    assert gin_example.CALLS == [("out", 4, 0, None)]
    assert "TRAIN_STEPS = 4" in Path("out/config.gin").read_text()


def test_run_runs_the_chain_with_overrides_for_it_and_for_its_stages(nlhf):
    code, stdout, _ = nlhf(
        "run",
        "--gin_file=chain.gin",
        "--gin.SFT_STEPS=5",
        "--gin.sft/gin_example.train_stage.seed=2",
        "--workdir=out",
    )
    assert code == 0
    assert gin_example.CALLS == [("sft", 5, 2, None), ("report", "out")]
    assert stdout.endswith("report: out/report.html\n")
    assert "SFT_STEPS = 5" in Path("out/config.gin").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("rnu",), "there is no job 'rnu'; did you mean run?"),
        (("frobnicate",), "there is no job 'frobnicate'; there are run, train,"),
        (("train",), "nlhf train: the following arguments are required: --gin_file, --workdir"),
        (
            ("train", "--gin_file=run.gin", "--workdri=x", "--workdir=out"),
            "did you mean --workdir?",
        ),
        (("train", "--gin.TRAIN_STEPS", "3"), "write --gin.TRAIN_STEPS=value"),
        (("train", "--gin_file=run.gin", "--workdir=out"), "set it with --gin.TRAIN_STEPS=..."),
        (("train", "--gin_file=no.gin", "--workdir=out"), "the gin file no.gin does not exist"),
        (
            ("train", "--gin_file=run.gin", "--gin.STEPS=1", "--workdir=out"),
            "the macro STEPS that is to be set; did you mean 'TRAIN_STEPS'?",
        ),
        (("run", "--gin_file=run.gin", "--gin.TRAIN_STEPS=1", "--workdir=o"), "run.stages has no"),
        (("report", "--workdir=o", "--gin.A=1"), "nlhf report needs no gin file"),
        (("sample", "--checkpoint=o", "--num_samples=0"), "--num_samples is 0"),
        (("sample", "--checkpoint=o", "--num_samples=x"), "invalid int value"),
        (("sample", "--checkpoint=o", "--temperature=-1"), "--temperature is -1.0"),
        (("data", "check", "a.jsonl"), "'a.jsonl' must be KIND:FILE, for example sft:a.jsonl"),
        (("data", "vocabulary", "sft:a.jsonl"), "nlhf data vocabulary needs --output=..."),
    ],
)
def test_a_wrong_command_line_gets_one_sentence_and_exit_code_2(nlhf, arguments, text):
    assert text in error_of(nlhf, *arguments)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("a.jsonl, line 3: no prompt"), 2, "nlhf: error: a.jsonl, line 3: no prompt\n"),
        (TrainingDiverged("the loss is nan at step 3"), 3, "nlhf: the loss is nan at step 3\n"),
        (
            Preempted(signal.SIGTERM, "after step 3"),
            143,
            "nlhf: stopped by SIGTERM after step 3, and the same command continues\n",
        ),
        (KeyboardInterrupt(), 130, "nlhf: interrupted; the same command continues\n"),
    ],
)
def test_how_a_job_ends_is_the_exit_code(nlhf, error, code, text):
    gin_example.ERRORS.append(error)
    arguments = ("train", "--gin_file=run.gin", "--gin.TRAIN_STEPS=4", "--workdir=out")
    assert nlhf(*arguments) == (code, "", text)


def test_a_bug_keeps_its_traceback(nlhf):
    gin_example.ERRORS.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        nlhf("train", "--gin_file=run.gin", "--gin.TRAIN_STEPS=4", "--workdir=out")


# --- sample --------------------------------------------------------------------------------------


def rows(text):
    return [(row["prompt"], row["completion"]) for row in map(json.loads, text.splitlines())]


def test_sample_reads_one_prompt_a_line(nlhf, tmp_path):
    (tmp_path / "prompts.txt").write_text("ein Tag\n\n  the other \n")
    code, stdout, _ = nlhf(
        "sample", "--checkpoint=out", "--prompts=prompts.txt", "--num_samples=2", "--seed=5"
    )
    assert code == 0
    assert rows(stdout) == [
        ("ein Tag", "ein Tag 0"),
        ("ein Tag", "ein Tag 1"),
        ("the other", "the other 0"),
        ("the other", "the other 1"),
    ]
    assert gin_example.CALLS == [("out", 2, 1.0, 5)]


def test_sample_reads_json_lines_from_standard_input_and_writes_a_file(nlhf, monkeypatch):
    lines = '{"prompt": "grüß\\ndich"}\n{"prompt": "b"}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert nlhf("sample", "--checkpoint=out", "--output=out.jsonl") == (0, "", "")
    text = Path("out.jsonl").read_text(encoding="utf-8")
    assert rows(text) == [("grüß\ndich", "grüß\ndich 0"), ("b", "b 0")]
    assert "grüß" in text


def test_an_output_that_is_not_finished_does_not_appear(nlhf, monkeypatch, tmp_path):
    def sample(**arguments):
        yield ["a"]
        raise UserError("the rest is bad")

    monkeypatch.setattr(Jobs, "sample", staticmethod(sample))
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    error_of(nlhf, "sample", "--checkpoint=o", "--prompts=prompts.txt", "--output=out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chain.gin",
        "prompts.txt",
        "run.gin",
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\n \n", "prompts.txt holds no prompt"),
        (b"\xff\xfe", "prompts.txt is not UTF-8 text"),
        (
            b'{"prompt": "a"}\n{"text": "b"}\n',
            "prompts.txt, line 2: the key 'prompt' is missing",
        ),
        (b'{"prompt": "a"}\n{"prompt"\n', "prompts.txt, line 2: not valid JSON"),
        (b'{"prompt": 3}\n', "prompts.txt, line 1: 'prompt' must be text, met 3"),
    ],
)
def test_bad_prompts_are_named(nlhf, tmp_path, content, text):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert text in error_of(nlhf, "sample", "--checkpoint=o", "--prompts=prompts.txt")


def test_prompts_that_cannot_be_read_and_outputs_that_cannot_be_written_are_named(nlhf, tmp_path):
    assert "no.txt: cannot read the prompts" in error_of(
        nlhf, "sample", "--checkpoint=o", "--prompts=no.txt"
    )
    (tmp_path / "prompts.txt").write_text("a")
    assert "cannot write no/out.jsonl" in error_of(
        nlhf, "sample", "--checkpoint=o", "--prompts=prompts.txt", "--output=no/out.jsonl"
    )


# --- data ----------------------------------------------------------------------------------------


def test_data_check_says_what_is_wrong_on_which_line(nlhf, tmp_path):
    (tmp_path / "good.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    assert nlhf("data", "check", "sft:good.jsonl")[0] == 0
    code, stdout, stderr = nlhf("data", "check", "sft:good.jsonl", "sft:bad.jsonl")
    assert code == 2
    assert "bad.jsonl, line 1: " in stdout
    assert stderr == "nlhf: error: there are bad lines in bad.jsonl\n"


def test_a_scale_is_the_file_of_that_name_beside_the_chain_s(nlhf, tmp_path):
    """Before anything runs, so that the sentence names the file that was looked for."""
    arguments = ["run", "--gin_file=studies/paper_table.gin", f"--workdir={tmp_path / 'out'}"]
    code, _, err = nlhf(*arguments, "--scale=tiny")
    assert code == 2 and "studies/paper_table_tiny.gin does not exist" in err
    code, _, err = nlhf(*arguments, "--scale=small", "--gin.SEEDS=0")
    assert code == 2 and "SEEDS is 0 but must be at least 1" in err
    code, out, _ = nlhf("config", "--gin_file=studies/paper_table.gin", "--scale=small")
    assert code == 0 and "overrides 5 of studies/paper_table.gin" in out
