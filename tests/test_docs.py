"""The documentation builds without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    """Links to definitions, the settings of gin files and all docstrings are of this code."""
    pytest.importorskip("myst_parser", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    method = (tmp_path / "method.html").read_text()
    assert 'href="_modules/nlhf_jax/losses.html#reward_to_go"' in method
    assert (tmp_path / "_modules" / "nlhf_jax" / "losses.html").exists()
    assert "overrides" in (tmp_path / "configuration.html").read_text()
