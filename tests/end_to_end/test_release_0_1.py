"""What release 0.1 (commit a39b67a) wrote keeps working.

`release_0_1.tar.xz` was written by it, on JSON lines of four rows: `sft/` and `preference/` are
trainings of two steps, `half/` is Nash-EMA after two steps of `user.gin`, and `whole/` after four.
"""

import contextlib
import os
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax import checkpoints, rollout
from nlhf_jax.main import main

ARCHIVE = Path(__file__).with_name("release_0_1.tar.xz")


@pytest.fixture
def place(tmp_path):
    """The working directory, with what 0.1 left in it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    with contextlib.chdir(tmp_path):
        yield tmp_path


@pytest.fixture
def drawn_as_then(monkeypatch):
    """Rollouts draw tokens otherwise now, of the same distribution; all else is to be the same."""
    monkeypatch.setattr(
        rollout, "drawn_tokens", lambda key, logits: jax.random.categorical(key, logits, axis=-1)
    )


def assert_close(one: str, other: str) -> None:
    loaded = [checkpoints.load(source) for source in (one, other)]
    assert loaded[0].step == loaded[1].step == 4
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, *(found.params for found in loaded))


@pytest.mark.slow
def test_a_run_begun_with_it_goes_on_to_the_same_end_with_its_gin_file(
    place, capsys, drawn_as_then
):
    """It left no record of what it was begun with, which is said; then there is one."""
    command = ["train", "--gin_file=user.gin", "--workdir=half"]
    assert main(command) == 0
    assert "nothing says with which settings and data" in capsys.readouterr().err
    assert main([*command, "--gin.TAU=0.2"]) == 2
    assert "TAU  0.1   0.2" in capsys.readouterr().err
    assert_close("half", "whole")
    assert_close("half#average", "whole#average")


@pytest.mark.slow
def test_the_configuration_that_it_left_behind_is_the_same_training(place, drawn_as_then):
    """`config.gin` names every value, and modules by where they were then."""
    text = (place / "whole" / "config.gin").read_text()
    assert "from nlhf_jax import builders\n" in text and "builders.policy.average_decay" in text
    assert main(["train", "--gin_file=whole/config.gin", "--workdir=again"]) == 0
    assert_close("again", "whole")


def test_a_user_s_file_may_choose_the_objective_by_loss(place, capsys):
    ipo = ["--gin.LOSS='ipo'", "--gin.KL=None", "--gin.TAU=0.0"]
    assert main(["train", "--gin_file=user.gin", *ipo, "--workdir=ipo"]) == 2
    assert "TAU is 0.0 but IPO needs it positive" in capsys.readouterr().err
    wrong = ["--gin.LOSS='dpo'"]
    assert main(["train", "--gin_file=user.gin", *wrong, "--workdir=dpo"]) == 2
    assert "LOSS is 'dpo' but must be 'policy_gradient' or 'ipo'" in capsys.readouterr().err


def test_its_checkpoints_describe_themselves(place, capsys):
    Path("prompts.txt").write_text("the cat sat on a mat\n")
    assert main(["sample", "--checkpoint=whole", f"--prompts={os.fspath('prompts.txt')}"]) == 0
    assert capsys.readouterr().out.startswith('{"prompt": "the cat sat on a mat", "completion": ')
