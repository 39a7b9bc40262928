"""Every reader of files that somebody else may have written, with a good example for each.

A case is a directory of files; a reader gets it and reads all that there is. What may come of that
is acceptance or a UserError: one sentence, exit code 2.
"""

import contextlib
import dataclasses
import functools
import io
import json
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

from etils import epath

from nlhf_jax import configuration
from nlhf_jax.checkpoints.arrays import read_all
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.data import batches, check, json_lines, sources, tasks
from nlhf_jax.data.prompts import PLAIN, PromptForm
from nlhf_jax.data.tldr import files as tldr_files
from nlhf_jax.data.vocabularies import Vocabulary, tldr_mini_vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import blind_sheet, people
from nlhf_jax.jobs import chain
from nlhf_jax.models import registry
from nlhf_jax.report import contents, html, markdown, writing
from nlhf_jax.report.contents import Report
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.data import tldr_rows
from tests.report.test_report import write_tournament

Files = Mapping[str, bytes]
ACCEPTED, REFUSED = "accepted", "refused"


@dataclasses.dataclass(frozen=True)
class Reader:
    """`read` reads a directory that has `good()` or something else in it.

    Attributes:
      main_file: the file that a case of one file is about.
    """

    name: str
    main_file: str
    good: Callable[[], Files]
    read: Callable[[Path], object]


def write(directory: Path, files: Files) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def outcome(reader: Reader, files: Files) -> tuple[str, str]:
    """(ACCEPTED, ""), (REFUSED, the sentence), or (the exception's type, its traceback)."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), files)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                reader.read(Path(directory))
        except UserError as error:
            return REFUSED, str(error)
        except Exception as error:
            return type(error).__name__, traceback.format_exc(limit=-4)
        return ACCEPTED, ""


def contents_of(directory: Path) -> Files:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# --- data ----------------------------------------------------------------------------------------

ROWS = {
    "sft": {"prompt": "my boss steals food", "completion": "boss food"},
    "preferences": {"prompt": "my boss", "chosen": "boss", "rejected": "food", "weight": 0.75},
    "prompts": {"prompt": "what shall I do?"},
}


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _lines_reader(kind: str) -> Reader:
    def read(directory: Path) -> None:
        path = directory / "user.jsonl"
        json_lines.check_exists(path)
        found = check.check(path, kind, tldr_mini_vocabulary(), {"inputs": 8, "text": 8})
        found.report().encode("utf-8", "replace")
        skipping = json_lines.File(path, kind, skip=True)
        good = skipping()
        # Nothing is lost without being counted: each line that is not blank is one of these.
        assert len(good) == found.rows and skipping.skipped == found.problems
        json_lines.File(path, kind)()

    return Reader(f"lines of {kind}", "user.jsonl", lambda: {"user.jsonl": lines(ROWS[kind])}, read)


def _prompts_reader(name: str, form: PromptForm, good: bytes) -> Reader:
    def read(directory: Path) -> None:
        prompts = json_lines.read_prompts(str(directory / "prompts"), form)
        words = tldr_mini_vocabulary()
        for prompt in prompts:
            text = form.prompt_of({"prompt": prompt} if isinstance(prompt, str) else prompt)
            assert len(form.tokens(text, 60, words.encode)) < 60

    return Reader(name, "prompts", lambda: {"prompts": good}, read)


def _read_task(directory: Path) -> None:
    """A user's file through seqio, TensorFlow's tokeniser and the batches."""
    words = tldr_mini_vocabulary()
    path = str(directory / "user.jsonl")
    tasks.register_tasks("nasty", sources.json_lines_sources(sft={"train": path}), words)
    examples = batches.load_examples("nasty_sft", "train", {"inputs": 8, "targets": 8})
    for text, row in zip(examples.texts("inputs"), examples.arrays["inputs"], strict=True):
        assert row.tolist()[: len(row)] == ([*words.encode(text)[:7], 1] + [0] * 8)[:8]


TLDR = tldr_files.PROMPT_FORM


@functools.cache
def _tldr_dataset() -> Files:
    with tempfile.TemporaryDirectory() as directory:
        tldr_rows.write_posts(Path(directory) / "files")
        _read_tldr_dataset(Path(directory))
        return {
            name: content
            for name, content in contents_of(Path(directory)).items()
            if name.startswith("tldr/")
        }


def _read_tldr_dataset(directory: Path) -> None:
    found = sources.tldr_sources(str(directory), str(directory / "files"))
    tasks.register_tasks("nasty_tldr", found, tldr_mini_vocabulary(), form=TLDR)
    batches.load_examples("nasty_tldr_sft", "train", {"inputs": 60, "targets": 8})


# --- checkpoints ---------------------------------------------------------------------------------


@functools.cache
def checkpoint(form: str) -> Files:
    with tempfile.TemporaryDirectory() as directory:
        network = tiny.model(tiny_checkpoints.WORDS.size, layers=1)
        path = tiny_checkpoints.write(Path(directory), form, network, tiny.params(network, 1))
        return contents_of(path)


def _read_checkpoint(directory: Path) -> None:
    found = open_checkpoint(str(directory))
    registry.build(found.model)
    read_all(found.params)
    if found.vocabulary_bytes is not None:
        Vocabulary.from_bytes(found.vocabulary_bytes)
    form = (found.description or {}).get("prompt_form")
    if form is not None:
        PromptForm(form)


def _without_sums(form: str) -> Files:
    """As release 0.1 wrote it, or somebody who means harm: no sums refuse what is inside."""
    files = checkpoint(form)
    description = "checkpoints/7/description/metadata"
    says = json.loads(files[description])
    del says["checksums"]  # Without the word that there are some, it is as release 0.1 wrote it.
    files = {**files, description: json.dumps(says).encode()}
    return {name: files[name] for name in files if not name.endswith("checksums.json")}


def checkpoint_reader(form: str, main_file: str) -> Reader:
    return Reader(
        f"checkpoint: {form}", main_file, functools.partial(checkpoint, form), _read_checkpoint
    )


# --- reports -------------------------------------------------------------------------------------


@functools.cache
def tournament() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        return write_tournament(Path(directory)).to_json().encode()


def report_of(directory: Path) -> Report:
    """All that a report reads, without the figures, which take longer than all the rest."""
    with mock.patch.object(contents, "_figures", lambda *_: {}):
        return contents.read_report(epath.Path(directory))


def _read_report(directory: Path) -> None:
    report = report_of(directory)
    for text in (html.render(report), markdown.render(report), writing._json(report)):
        text.encode("utf-8")


def _report_files() -> Files:
    finding = {"name": "one", "title": "T", "text": "x", "numbers": {"a": 1}, "table": [["a"]]}
    metrics = [
        {"step": 0, "split": "data", "examples": 9, "truncated_inputs": 1},
        {"step": 1, "split": "train", "loss": 1.5},
        {"step": 1, "split": "validation", "loss": 1.25},
    ]
    return {
        "sft/metrics.jsonl": lines(*metrics),
        "sft/timing.json": b'{"started": 1.0, "seconds": 12.5, "steps": 3}',
        "sft/run.json": json.dumps(
            {"changes": [{"setting": "TAU", "then": 1, "now": 2, "step": 3}]}
        ).encode(),
        "sft/findings.json": json.dumps({"findings": [finding]}).encode(),
        "sft/figures/one.png": b"\x89PNG",
    }


# --- people's answers ----------------------------------------------------------------------------

_RESPONSES = {name: [("my boss", "boss"), ("my food", f"food {name}")] for name in ("sft", "nash")}
_SHEET = blind_sheet.draw(_RESPONSES, 1, 0)


def _read_responses(directory: Path) -> None:
    found = blind_sheet.read_responses(directory / "nash.jsonl")
    sheet = blind_sheet.draw({"sft": _RESPONSES["sft"], "nash": found}, 9, 0)
    blind_sheet.page(sheet).encode()
    blind_sheet.table(sheet)


def _read_answers(directory: Path) -> None:
    sheet = blind_sheet.read_key(directory / "sheet.key.json")
    raters = people.read_answers([directory / "answers"], sheet)
    people.summary(sheet, raters)
    for line in people.preferences(people.votes(sheet, raters)):
        json.dumps(line, ensure_ascii=False).encode()


def _answers_reader(name: str, main_file: str, answers: bytes) -> Reader:
    files = {"sheet.key.json": blind_sheet.key(_SHEET).encode(), "answers": answers}
    return Reader(name, main_file, lambda: files, _read_answers)


_ITEM = _SHEET.items[0].id
_PEOPLE = (
    Reader(
        "responses",
        "nash.jsonl",
        lambda: {"nash.jsonl": lines(ROWS["sft"] | {"prompt": "my food"})},
        _read_responses,
    ),
    _answers_reader(
        "answers, JSON",
        "answers",
        json.dumps(
            {"sheet": _SHEET.id, "rater": "A", "answers": [{"id": _ITEM, "answer": "1"}]}
        ).encode(),
    ),
    _answers_reader("answers, CSV", "answers", f"id,answer,rater\n{_ITEM},tie,A\n".encode()),
    _answers_reader("sheet.key.json", "sheet.key.json", f"id,answer\n{_ITEM},2\n".encode()),
)

# --- all of them ---------------------------------------------------------------------------------

_GIN = b"""from __gin__ import dynamic_registration
from nlhf_jax.jobs import chain
SEED = 1
include "other.gin"
chain.run.macros = {"SEED": %SEED}
"""


def _read_gin(directory: Path) -> None:
    with contextlib.chdir(directory):
        configuration.parse(["user.gin"], complete=False)


_TLDR_PROMPT = {"subreddit": "jobs", "title": "My boss", "post": "He steals my food."}
READERS = {
    reader.name: reader
    for reader in (
        *_PEOPLE,
        *map(_lines_reader, ROWS),
        _prompts_reader("prompts, text", PLAIN, b"my boss\nmy food\n"),
        _prompts_reader("prompts, JSON lines", PLAIN, lines(ROWS["prompts"])),
        _prompts_reader(
            "prompts, of a form", TLDR, lines(_TLDR_PROMPT, {"prompt": TLDR.fill(_TLDR_PROMPT)})
        ),
        Reader("seqio task", "user.jsonl", lambda: {"user.jsonl": lines(ROWS["sft"])}, _read_task),
        Reader(
            "tldr's posts",
            "posts.jsonl",
            lambda: {"posts.jsonl": lines(tldr_rows.post(1))},
            lambda directory: list(tldr_files.read_posts(directory / "posts.jsonl")),
        ),
        Reader(
            "tldr's votes",
            "votes.json",
            lambda: {"votes.json": lines(tldr_rows.vote(1, confidence=3))},
            lambda directory: list(tldr_files.read_votes([directory / "votes.json"])),
        ),
        Reader(
            "TFDS dataset", "tldr/sft/1.0.0/dataset_info.json", _tldr_dataset, _read_tldr_dataset
        ),
        Reader(
            "vocabulary",
            "words.model",
            lambda: {"words.model": tldr_mini_vocabulary().model_bytes},
            lambda directory: Vocabulary.load(directory / "words.model").encode("my boss </s>"),
        ),
        Reader("gin", "user.gin", lambda: {"user.gin": _GIN, "other.gin": b"A = 3\n"}, _read_gin),
        dataclasses.replace(
            checkpoint_reader("nlhf", "checkpoints/7/description/metadata"),
            good=functools.partial(_without_sums, "nlhf"),
        ),
        dataclasses.replace(
            checkpoint_reader("nlhf", "checkpoints/7/checksums.json"),
            name="checkpoint: nlhf, sealed",
        ),
        checkpoint_reader("t5x", "checkpoint"),
        checkpoint_reader("t5x_orbax", "state/_METADATA"),
        checkpoint_reader("huggingface", "config.json"),
        Reader(
            "tournament.json",
            "tournament/tournament.json",
            lambda: {"tournament/tournament.json": tournament()},
            _read_report,
        ),
        Reader("metrics.jsonl", "sft/metrics.jsonl", _report_files, _read_report),
        Reader(
            "stage.json",
            "stage.json",
            lambda: {"stage.json": b'{"job": "train", "fingerprint": "f", "config": "A = 1"}'},
            lambda directory: chain._read_marker(epath.Path(directory) / "stage.json"),
        ),
    )
}
