"""Users' files: what is read, and what is said about what cannot be read."""

import json
import re

import pytest

from nlhf_jax.data import json_lines
from nlhf_jax.data.json_lines import Comparison, Demonstration, Prompt
from nlhf_jax.errors import UserError

GOOD = {
    "sft": b'{"prompt": "A post.", "completion": "Short."}\n',
    "preferences": b'{"prompt": "A post.", "chosen": "Short.", "rejected": "Long."}\n',
    "prompts": b'{"prompt": "A post."}\n',
}


@pytest.fixture
def file(tmp_path):
    def write(content: bytes):
        path = tmp_path / "user.jsonl"
        path.write_bytes(content)
        return path

    return write


def test_rows_of_each_kind(file):
    assert json_lines.read(file(GOOD["sft"]), "sft") == [Demonstration("A post.", "Short.")]
    assert json_lines.read(file(GOOD["preferences"]), "preferences") == [
        Comparison("A post.", "Short.", "Long.", 1.0)
    ]
    assert json_lines.read(file(GOOD["prompts"]), "prompts") == [Prompt("A post.")]


def test_other_keys_blank_lines_and_a_byte_order_mark_do_no_harm(file):
    content = b"\xef\xbb\xbf" + GOOD["prompts"] + b'\n  \n{"id": 3, "prompt": "M\xc3\xbcller"}'
    assert json_lines.read(file(content), "prompts") == [Prompt("A post."), Prompt("Müller")]


@pytest.mark.parametrize("weight", [0.51, 0.75, 1, 1.0])
def test_weights_are_read(file, weight):
    line = {"prompt": "x", "chosen": "a", "rejected": "b", "weight": weight}
    assert json_lines.read(file(json.dumps(line).encode()), "preferences")[0].weight == weight


BAD = [
    ("sft", b'{"prompt": "x", completion: 3}', "not valid JSON: .* at column 17"),
    ("sft", b'{"prompt": "x"', "not valid JSON: "),
    ("sft", b"[" * 100_000, "not usable JSON: nested too deeply"),
    ("sft", b'["x", "y"]', "wanted a JSON object with 'prompt' and 'completion', met "),
    ("sft", b'"x"', "wanted a JSON object"),
    ("sft", b'{"prompt": "x"}', "the key 'completion' is missing; a line of kind 'sft' needs "),
    ("prompts", b'{"text": "x"}', "the key 'prompt' is missing"),
    ("sft", b'{"prompt": "", "completion": "y"}', "'prompt' is empty"),
    ("sft", b'{"prompt": "x", "completion": " \\n"}', "'completion' is empty"),
    ("sft", b'{"prompt": 3, "completion": "y"}', "'prompt' must be text, met 3"),
    ("sft", b'{"prompt": "x", "completion": null}', "'completion' must be text, met null"),
    ("sft", b'{"prompt": "x", "completion": ["y"]}', "'completion' must be text, met "),
    ("sft", b'{"prompt": "\\ud83d", "completion": "y"}', "'prompt' holds half of a surrogate pair"),
    ("sft", b'{"prompt": "x\xff", "completion": "y"}', "byte 14 of the line is not valid UTF-8"),
    ("preferences", b'{"prompt": "x", "chosen": "y"}', "the key 'rejected' is missing"),
    (
        "preferences",
        b'{"prompt": "x", "chosen": "y", "rejected": "y"}',
        "'chosen' and 'rejected' are the same text",
    ),
] + [
    (
        "preferences",
        b'{"prompt": "x", "chosen": "y", "rejected": "z", "weight": %s}' % weight,
        message,
    )
    for weight, message in (
        (b"0.5", r"'weight' must be in \(0.5, 1\], met 0.5"),
        (b"0.2", r"'weight' must be in \(0.5, 1\], met 0.2"),
        (b"1.01", r"'weight' must be in \(0.5, 1\], met 1.01"),
        (b"NaN", r"'weight' must be in \(0.5, 1\], met NaN"),
        (b'"0.9"', r"'weight' must be a number in \(0.5, 1\], met "),
        (b"true", r"'weight' must be a number in \(0.5, 1\], met true"),
    )
]


@pytest.mark.parametrize(("kind", "line", "message"), BAD)
def test_a_bad_line_is_named_with_file_and_number(file, kind, line, message):
    path = file(GOOD[kind] + b"\n" + line + b"\n" + GOOD[kind])
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}, line 3: {message}") as error:
        json_lines.read(path, kind)
    assert "\n" not in str(error.value)
    rows = list(json_lines.scan(path, kind))  # the lines after it are looked at as well
    assert [isinstance(row, UserError) for row in rows] == [False, True, False]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_lines_is_named(file, content):
    with pytest.raises(UserError, match="user.jsonl: the file has no lines"):
        json_lines.read(file(content), "sft")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="none.jsonl: cannot read the file: No such file"):
        json_lines.read(tmp_path / "none.jsonl", "sft")
    with pytest.raises(UserError, match=f"{tmp_path.name}: cannot read the file: Is a directory"):
        json_lines.read(tmp_path, "sft")
