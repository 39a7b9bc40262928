"""Starts launchers as a user does, and puts programs of the tests on their PATH."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHILD = "--module=tests.launch.child"
# What quoting has to carry unchanged.
ODD = [
    "--gin.TEXT='a b  c'",
    """--gin.PLAYERS={'x': "gs://b/#best"}""",
    "--gin.X=$(echo no) `echo no` $HOME ${HOME}",
    "--gin.Y=a;b|c&d>e<f*g?h[i]j\\k!l~m#n%o^p",
    "--gin.Z=ü 選 🙂",
    "",
    "-n",
]


def command(launcher: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / launcher), *arguments]


def launch(launcher: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a launcher to its end, with more environment variables."""
    return subprocess.run(
        command(launcher, *arguments),
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def start(launcher: str, *arguments: str, **variables: str) -> subprocess.Popen:
    """Starts a launcher; its stderr comes with its stdout."""
    return subprocess.Popen(
        command(launcher, *arguments),
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def install(directory: Path, name: str, text: str) -> str:
    """Puts a program into a directory; PATH with that directory first."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def refusal(done: subprocess.CompletedProcess) -> str:
    """The one sentence with which a launcher refused."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line
