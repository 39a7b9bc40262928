"""Where the tests find data that is not part of the project."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def golden_directory() -> Path:
    """Checkpoints and numbers written by the real T5X; skips the test where they are missing."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("../shared/golden (fixtures written by T5X) is not on this machine")
    return SHARED / "golden"
