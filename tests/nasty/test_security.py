"""Data cannot run, and secrets stay where they are."""

import ast
import base64
import html.parser
import importlib.util
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import markdown_it
import msgpack
import numpy as np
import pytest

import nlhf_jax
from nlhf_jax.report.writing import write_report
from tests.nasty.readers import READERS, outcome, write
from tests.report.test_report import write_lines, write_stage

PACKAGE = Path(nlhf_jax.__file__).parent
NASTY = "\"><img src=x onerror=alert(1)>' onload=y <b>${7*7}{{7*7}}</b> | [a](javascript:x) \u202e"

# --- what the package does not do ----------------------------------------------------------------

_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
_CALLS = {"eval", "exec", "compile", "execfile", "__import__", "input"}
_METHODS = {
    "os": {"system", "popen", "execv", "execve", "execvp", "execl", "spawnv", "spawnl"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "yaml": {"load", "load_all", "unsafe_load", "full_load"},
    "torch": {"load"},
    "pandas": {"read_pickle"},
    "builtins": {"eval", "exec"},
}


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> list[str]:
    """What in a program could run data, or a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in _MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _MODULES:
            found.append(str(node.module))
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func)
        module, _, method = name.rpartition(".")
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        if name in _CALLS or method in _METHODS.get(module, ()):
            found.append(name)
        if given.get("shell") or given.get("allow_pickle"):
            found.append(f"{name}(shell or allow_pickle)")
        if method in ("extractall", "extract") and given.get("filter") != "data":
            found.append(name)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "archive.extractall(path)",
    ],
)
def test_a_danger_is_seen(source):
    assert dangers(source)


def test_the_package_runs_no_data_and_no_shell():
    found = {
        f"{path.relative_to(PACKAGE)}: {danger}"
        for path in PACKAGE.rglob("*.py")
        for danger in dangers(path.read_text(encoding="utf-8"))
    }
    # `nlhf` starts itself anew: the same program, with the arguments that it was started with.
    assert found == {"huge_pages.py: os.execve"}
    assert "os.execve(sys.executable, sys.orig_argv, " in (PACKAGE / "huge_pages.py").read_text()


# --- reading executes nothing --------------------------------------------------------------------


class _Payload:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """A file that must not appear, with proof that the payload would make it."""
    path = tmp_path / "marker"
    pickle.loads(pickle.dumps(_Payload(path)))
    assert path.exists()
    path.unlink()
    return path


def _payloads(marker: Path) -> dict[str, bytes]:
    pickled = pickle.dumps(_Payload(marker))
    array = io.BytesIO()
    np.save(array, np.array([_Payload(marker)], object), allow_pickle=True)
    call = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    record = {"prompt": call, "completion": f"@{call}", "py/reduce": [call]}
    return {
        "a pickle": pickled,
        "a pickle of protocol 0": pickle.dumps(_Payload(marker), protocol=0),
        "an .npy with objects": array.getvalue(),
        "msgpack with a pickle": msgpack.packb({"optimizer": msgpack.ExtType(1, pickled)}),
        "a call": call.encode(),
        "a gin file": f"A = @{call}\nB = {call}\nimport nasty_module\n".encode(),
        "YAML": f"!!python/object/apply:pathlib.Path.touch [{str(marker)!r}]".encode(),
        "JSON": json.dumps(record).encode() + b"\n",
    }


@pytest.mark.parametrize("name", sorted(READERS))
def test_reading_cannot_run_what_is_read(name, marker):
    """Each payload in the place of each file (of arrays' many files, of some of them)."""
    reader = READERS[name]
    good = reader.good()
    names = [reader.main_file, *sorted(good)[:: max(1, len(good) // 6)]]
    for payload in _payloads(marker).values():
        for file in dict.fromkeys(names):
            outcome(reader, {**good, file: payload})
    assert not marker.exists()


def test_a_checkpoint_cannot_have_a_module_imported(tmp_path, marker, monkeypatch):
    (tmp_path / "nasty_module.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    reader = READERS["checkpoint: nlhf"]
    good = reader.good()
    description = json.loads(good[reader.main_file])
    description["model"] = {"family": "nasty_module.Model", "module": "nasty_module"}
    met, said = outcome(reader, {**good, reader.main_file: json.dumps(description).encode()})
    assert met == "refused" and "the model family 'nasty_module.Model' is unknown" in said
    assert "nasty_module" not in sys.modules and not marker.exists()


# --- reports -------------------------------------------------------------------------------------


class _Elements(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: set[tuple[str, tuple[str, ...]]] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.add((tag, tuple(name for name, _ in attributes)))


def _nasty_run(directory: Path, text: str) -> Path:
    """A work directory in which every text and name is `text`."""
    good = json.loads(READERS["tournament.json"].good()["tournament/tournament.json"])
    names = {name: f"{text} {n}" for n, name in enumerate(good["win_rates"]["names"])}
    names["reference"] = "reference"
    told = json.dumps(good)

    def changed(tree):
        if isinstance(tree, dict):
            return {names.get(key, key): changed(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [changed(value) for value in tree]
        return names.get(tree, text) if isinstance(tree, str) and tree in told else tree

    result = changed(good)
    result["win_rates"]["interval"] = text
    write(directory, {"tournament/tournament.json": json.dumps(result).encode()})
    stage = text.replace("/", "")[:60]
    write_stage(directory, stage, started=1.0)
    write_lines(directory / "other" / "metrics.jsonl", [
        {"step": 0, "split": "data", text: 3},
        {"step": 1, "split": "train", text: 1.5},
        {"step": 2, "split": "train", text: 1.25},
    ])  # fmt: skip
    finding = {"name": "one", "title": text, "text": text, "numbers": {text: text}}
    write(
        directory / "other",
        {
            "findings.json": json.dumps(
                {"findings": [finding | {"table": [[text, "a"], [text, "b"]]}]}
            ).encode(),
            "figures/one.png": b"\x89PNG",
        },
    )
    return write_report(directory)


def test_no_element_and_no_attribute_of_a_report_comes_from_data(tmp_path):
    """The nasty run has the elements of a tame one, in HTML and in Markdown."""
    tame = _nasty_run(tmp_path / "tame", "tame text")
    nasty = _nasty_run(tmp_path / "nasty", NASTY)
    assert NASTY.split()[0] not in nasty.read_text(encoding="utf-8")
    assert _Elements(nasty.read_text("utf-8")).found == _Elements(tame.read_text("utf-8")).found

    def rendered(page: Path) -> set:
        text = page.with_suffix(".md").read_text("utf-8")
        return _Elements(markdown_it.MarkdownIt("commonmark").enable("table").render(text)).found

    assert rendered(nasty) == rendered(tame)


@pytest.mark.parametrize(
    "text", ["- a list", "1. a list", "# a title", "===", "---", "+ a", "    x"]
)
def test_the_beginning_of_a_line_means_nothing_in_markdown(text):
    from nlhf_jax.report import markdown

    assert set(markdown_it.MarkdownIt().render(markdown._text(text)).split()) <= {
        *f"<p>{text.strip()}</p>".split(),
        f"<p>{text.strip()}</p>",
    }


# --- secrets -------------------------------------------------------------------------------------

SECRETS = {
    "OPENAI_API_KEY": "sk-secret-of-a-judge",
    "HF_TOKEN": "hf_secret-of-a-hub",
    "AWS_SECRET_ACCESS_KEY": "secret-of-a-bucket",
    "SOME_PASSWORD": "secret-word",
}


@pytest.mark.slow  # a training and its report
def test_no_secret_of_the_environment_is_in_any_file_of_a_run(workplace, nlhf, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    workdir = Path(workplace.path("secrets"))
    code, errors = nlhf(*workplace.arguments("sft", "secrets", steps=2))
    assert code == 0, errors
    assert nlhf("report", f"--workdir={workdir}")[0] == 0
    files = [path for path in workdir.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        for value in SECRETS.values():
            assert value.encode() not in content, path
            assert base64.b64encode(value.encode()).rstrip(b"=") not in content, path
    assert not any(value in errors for value in SECRETS.values())


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "SECRET", "judge_password"])
def test_a_secret_in_a_gin_file_is_refused_and_not_repeated(name, nlhf, tmp_path):
    (tmp_path / "user.gin").write_text(f"{name} = 'sk-secret'\nSEED = 1\n")
    code, errors = nlhf("config", f"--gin_file={tmp_path}/user.gin")
    assert code == 2 and f"the macro {name} looks like a secret" in errors
    assert "sk-secret" not in errors


# --- packages ------------------------------------------------------------------------------------


@pytest.mark.slow  # a network away
def test_no_package_of_the_lock_file_has_a_known_hole():
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed; it is in the extra 'dev'")
    lock = PACKAGE.parent / "requirements.lock"
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-r", str(lock)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    unreachable = ("ConnectionError", "Max retries", "timed out", "ServiceError", "HTTPError")
    if any(word in found.stderr for word in unreachable):
        pytest.skip(f"pip-audit cannot reach its data: {found.stderr.strip().splitlines()[-1]}")
    assert found.returncode == 0, found.stdout + found.stderr
