"""What the README and the documentation show runs, parses, or names options that exist."""

import re
import shlex
from pathlib import Path

import gin
import pytest

from nlhf_jax import configuration, main
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def with_blocks(language: str) -> list[str]:
    return [name for name in NAMES if blocks(name, language)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory) -> Path:
    """What `nlhf run` leaves in `out`, as far as pages speak of it, with tiny networks."""
    network = tiny_checkpoints.model()
    data, out = tiny_checkpoints.data(), tmp_path_factory.mktemp("run")
    for seed, name in enumerate(("sft", "nash_md")):
        params = tiny.params(network, seed)
        tiny_checkpoints.write_ours(out / name, network, params)
    tiny_checkpoints.write_ours(
        out / "preference",
        network,
        tiny.params(network, 2),
        kind="preference",
        feature_lengths=tiny_checkpoints.RATER_LENGTHS,
        rater_template=data.rater.segments,
        rater_labels=data.vocabulary.rater_labels(),
    )
    (out / "report.html").write_text("<!doctype html><title>report</title>")
    return out


@pytest.mark.parametrize("name", with_blocks("python"))
def test_python_runs_from_the_top_of_a_page_to_its_end(name, run_directory):
    Path("out").symlink_to(run_directory)
    space: dict = {}
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), space)


@pytest.mark.parametrize("name", with_blocks("gin"))
def test_gin_parses_and_sets_what_the_files_that_it_includes_require(name, tmp_path):
    for number, block in enumerate(blocks(name, "gin")):
        path = tmp_path / f"{number}.gin"
        path.write_text(block)
        configuration.parse([str(path)])


def commands(name: str) -> list[list[str]]:
    """The `nlhf` commands of a page's shell blocks, without what follows `&&`."""
    lines = "\n".join(blocks(name, "bash")).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [shlex.split(part)[1:] for part in parts if part.startswith("nlhf ")]


@pytest.mark.parametrize("name", [name for name in NAMES if commands(name)])
def test_commands_name_jobs_options_and_files_that_exist(name, tmp_path):
    """They are parsed as the command line parses them, and not started."""
    (tmp_path / "mine.gin").write_text("")
    for arguments in commands(name):
        options = main.parse(arguments)
        for file in getattr(options, "gin_file", None) or ():
            configuration.parse([file], complete=False)
