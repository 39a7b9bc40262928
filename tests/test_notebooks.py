"""The notebooks run from top to bottom, and show what they say."""

import html
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import nlhf_jax
from nlhf_jax.evaluation.results import TournamentResult

NOTEBOOKS = Path(nlhf_jax.__file__).parent / "colab"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
# Sizes with which a chain takes seconds; half the layers compile in half the time.
SMALL_MODEL = """
from __gin__ import dynamic_registration
from nlhf_jax.models import t5_layers
include "models/mini.gin"
t5_layers.T5Config.num_encoder_layers = 1
t5_layers.T5Config.num_decoder_layers = 1
"""
FEW = {
    "VOCAB_SIZE": '256\nMODEL_FILE = "small_model.gin"\nSFT_BATCH_SIZE = 8\nRATER_BATCH_SIZE = 8\n'
    "POLICY_BATCH_SIZE = 8\nREADING_BATCH_SIZE = 8\nRATER_EVAL_PERIOD = 25\nNUM_PROMPTS = 16\n"
    "POLICY_LEARNING_RATE = 0.01",  # policies are to differ after few steps
    "SMALL_SET": {"train": 64, "validation": 16, "test": 16},
    "SFT_STEPS": 60,
    "READING_STEPS": 25,  # longer than the warm-up
    "REWARD_STEPS": 25,
    "PREFERENCE_STEPS": 25,
    "POLICY_STEPS": 22,
}


def run(name, place, **settings):
    """The notebook with its outputs, with other values of these settings, in a directory.

    Raises at the first cell that fails.
    """
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    for setting, value in settings.items():
        changed = 0
        for cell in notebook.cells:
            line = re.compile(rf"^{setting} = .*$", re.MULTILINE)
            cell.source, found = line.subn(lambda _, s=setting, v=value: f"{s} = {v}", cell.source)
            changed += found
        assert changed == 1, setting
    resources = {"metadata": {"path": str(place)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def text_of(notebook, stream="stdout"):
    shown = outputs(notebook)
    return "".join(one["text"] for one in shown if one.get("name") == stream)


def shown_as(notebook, kind):
    found = [one["data"].get(kind) for one in outputs(notebook) if "data" in one]
    return [one for one in found if one is not None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where `train.ipynb` trained a few steps, and what it shows."""
    place = tmp_path_factory.mktemp("trained")
    (place / "small_model.gin").write_text(SMALL_MODEL)
    return place, run("train.ipynb", place, **FEW)


@pytest.mark.slow
def test_the_training_notebook_runs_the_chain_and_shows_its_report(trained):
    place, notebook = trained
    [page] = [one for one in shown_as(notebook, "text/html") if "<iframe" in one]
    report = html.unescape(re.search('srcdoc="([^"]*)"', page)[1])
    assert report == (place / "out" / "report.html").read_text()
    said = text_of(notebook)
    assert "report (report): done" in said
    assert re.search(r"\rsft: [█░]{20} step \d+/60 ", said), "no bar"
    assert "Traceback" not in said + text_of(notebook, "stderr")
    assert said.rstrip().splitlines()[-1].startswith("  ")  # a response of the policy


@pytest.mark.slow
def test_the_inspecting_notebook_shows_any_run(trained):
    """That of the other notebook, whose checkpoints have other sizes, kinds and names."""
    place, _ = trained
    notebook = run(
        "inspect.ipynb",
        place,
        RUN='"out"',
        REFERENCE='f"{RUN}/sft#best"',
        RATER='f"{RUN}/preference#best"',
        REWARD='f"{RUN}/reward#best"',
        PROMPTS=[json.loads(line)["prompt"] for line in (place / "sft_test.jsonl").open()][:4],
        BETAS=(0.0, 0.5, 1.0),
    )
    check_inspected(notebook, place / "out")


@pytest.mark.long
def test_the_inspecting_notebook_makes_what_it_inspects(tmp_path):
    """As it is opened first: it trains for a minute or two."""
    check_inspected(run("inspect.ipynb", tmp_path), tmp_path / "small_run")


def check_inspected(notebook, place):
    said = text_of(notebook)
    kls = {
        float(beta): float(kl)
        for beta, kl in re.findall(r"beta (\S+): KL to the reference (\S+) \[", said)
    }
    assert kls[1.0] == 0 and kls[0.0] > kls[0.5] > 0
    assert len(shown_as(notebook, "image/png")) == 3
    tokens = [one for one in shown_as(notebook, "text/html") if "nats</small>" in one]
    assert len(tokens) >= 4
    for one in tokens:  # what each token's tip says sums to what stands below
        ratios = [float(said) for said in re.findall(r'title="(\S+) nats"', one)]
        total = float(re.search(r"log π/μ (\S+) nats", one)[1])
        assert sum(ratios) == pytest.approx(total, abs=0.005 * len(ratios) + 0.01)
    masses = [float(mass) for mass in re.findall(r"^ +\d+  (\d\.\d{3})  ", said, re.MULTILINE)]
    assert np.sum(masses) == pytest.approx(1, abs=0.0006 * len(masses))
    assert re.findall(r"best of 8 by (\w+): P", said) == ["nash", "borda", "reward"]
    result = TournamentResult.load(place / "tournament" / "tournament.json")
    assert f"judge: {result.judge}, {result.prompts} prompts" in said
    for standing in result.meta_game:
        assert f"{standing.name}: Nash average {standing.nash.value:.3f}" in said
    assert not text_of(notebook, "stderr")


@pytest.mark.slow
def test_the_games_notebook_shows_convergence_cycles_and_rater_types(tmp_path):
    notebook = run("games.ipynb", tmp_path)
    text = text_of(notebook)
    assert "eps    0.1: Nash [0.3833 0.3833 0.2333], Bradley-Terry optimum [1. 0. 0.]" in text
    assert "eps   -0.1: Nash [0.2833 0.2833 0.4333], Bradley-Terry optimum [0. 1. 0.]" in text
    assert len(shown_as(notebook, "image/png")) == 3
    assert not text_of(notebook, "stderr")


def test_notebooks_are_kept_without_outputs():
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert not [cell for cell in notebook.cells if cell.get("outputs")], path


def test_notebooks_begin_with_the_same_installation():
    """So that it is mended in all."""
    begun = [
        [cell.source for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells[1:5]]
        for name in NAMES
    ]
    assert len(begun) == 3 and begun[0] == begun[1] == begun[2]
    assert "%pip install" in begun[0][1] and "jax.devices()" in begun[0][3]
