"""Programs in two processes of two devices each, as `launch/local.py` starts them, over gloo."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.common import NLHF

REPOSITORY = Path(__file__).resolve().parents[2]


def together(arguments: Sequence[str], module: str = NLHF) -> None:
    """Runs a module's program with `arguments`; raises what it prints if it fails."""
    local = ["launch/local.py", "--processes=2", "--devices_per_process=2", "--timeout=600"]
    done = subprocess.run(
        [sys.executable, *local, f"--module={module}", "--", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
