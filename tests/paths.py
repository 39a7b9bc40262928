"""Where the tests find data that is not part of the project."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def golden_directory() -> Path:
    """Checkpoints and numbers written by the real T5X; skips the test where they are missing."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("../shared/golden (fixtures written by T5X) is not on this machine")
    return SHARED / "golden"


def debian_directory() -> Path:
    """Real text for the end-to-end tests; skips the test where it is missing."""
    if not (SHARED / "data" / "debian_tldr").is_dir():
        pytest.skip("../shared/data/debian_tldr is not on this machine")
    return SHARED / "data" / "debian_tldr"
