"""The notebooks run from top to bottom, and show what they say."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import nlhf_jax

NOTEBOOKS = Path(nlhf_jax.__file__).parent / "colab"


def run(name):
    """The notebook with its outputs; raises at the first cell that fails."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    return notebook


@pytest.mark.slow
def test_the_games_notebook_shows_convergence_cycles_and_rater_types():
    notebook = run("games.ipynb")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "eps    0.1: Nash [0.3833 0.3833 0.2333], Bradley-Terry optimum [1. 0. 0.]" in text
    assert "eps   -0.1: Nash [0.2833 0.2833 0.4333], Bradley-Terry optimum [0. 1. 0.]" in text
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_notebooks_are_kept_without_outputs():
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert not [cell for cell in notebook.cells if cell.get("outputs")], path
