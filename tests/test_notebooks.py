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
# Half the layers compile in half the time.
SMALL_MODEL = """
from __gin__ import dynamic_registration
from nlhf_jax.models import t5_layers
include "models/mini.gin"
t5_layers.T5Config.num_encoder_layers = 1
t5_layers.T5Config.num_decoder_layers = 1
"""
# The stages that a notebook looks at, in seconds each. What is left out, `-m long` runs.
FEW_STAGES = """
from __gin__ import dynamic_registration
from nlhf_jax.jobs import chain
MODEL_FILE = "small_model.gin"
SFT_BATCH_SIZE = 8
RATER_BATCH_SIZE = 8
POLICY_BATCH_SIZE = 8
POLICY_LEARNING_RATE = 0.01  # policies are to differ after few steps
RATER_EVAL_PERIOD = 25
RATERS_FROM = "stage:sft#best"
TOURNAMENT = {
    "RATER_CHECKPOINT": "stage:preference#best",
    "PLAYERS": {"SFT": "stage:sft#best", "MD": "stage:nash_md"},
}
chain.run.stages = [
    {"name": "vocabulary", "job": "data", "gin_file": "runs/vocabulary.gin", "macros": {"FILES": %VOCABULARY_FILES}},
    {"name": "sft", "job": "train", "gin_file": ["runs/sft.gin", %MODEL_FILE, "tasks/json_lines.gin", "runs/adamw.gin"], "macros": %SFT},
    {"name": "preference", "job": "train", "gin_file": [%PREFERENCE_RUN, %MODEL_FILE, "tasks/json_lines.gin", "runs/adamw.gin"], "macros": %PREFERENCE},
    {"name": "nash_md", "job": "train", "gin_file": ["runs/nash_md.gin", "tasks/json_lines.gin", "runs/adamw.gin"], "macros": %POLICY},
    {"name": "tournament", "job": "evaluate", "gin_file": ["runs/tournament.gin", "tasks/json_lines.gin"], "macros": %TOURNAMENT},
    {"name": "report", "job": "report"},
]
"""  # noqa: E501
FEW = {
    "VOCAB_SIZE": '256\ninclude "few_stages.gin"',
    "SMALL_SET": {"train": 64, "validation": 16, "test": 16},
    "SFT_STEPS": 60,
    "PREFERENCE_STEPS": 25,  # longer than the warm-up
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
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
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
    (place / "few_stages.gin").write_text(FEW_STAGES)
    return place, run("train.ipynb", place, **FEW)


@pytest.mark.slow
def test_the_training_notebook_runs_the_chain_and_shows_its_report(trained):
    check_trained(*trained)


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
        REWARD=None,
        PROMPTS=[json.loads(line)["prompt"] for line in (place / "sft_test.jsonl").open()][:4],
        BETAS=(0.0, 0.5, 1.0),
    )
    check_inspected(notebook, place / "out", ["nash", "borda"])


@pytest.mark.long
def test_the_training_notebook_runs_all_stages_as_it_is_opened(tmp_path):
    check_trained(tmp_path, run("train.ipynb", tmp_path))


@pytest.mark.long
def test_the_inspecting_notebook_makes_what_it_inspects(tmp_path):
    """As it is opened first: it trains for a minute or two."""
    notebook = run("inspect.ipynb", tmp_path)
    check_inspected(notebook, tmp_path / "small_run", ["nash", "borda", "reward"])


def check_trained(place, notebook):
    [page] = [one for one in shown_as(notebook, "text/html") if "<iframe" in one]
    report = html.unescape(re.search('srcdoc="([^"]*)"', page)[1])
    assert report == (place / "out" / "report.html").read_text()
    said = text_of(notebook)
    assert "report (report): done" in said
    assert re.search(r"\rsft: [█░]{20} step \d+/\d+ ", said), "no bar"
    assert said.rstrip("\n").splitlines()[-1].startswith("  ")  # a response of the policy


def check_inspected(notebook, place, ways):
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
    assert re.findall(r"best of 8 by (\w+): P", said) == ways
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
