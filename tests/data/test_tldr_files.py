"""The files of TL;DR: what is read from them, what is said of bad ones, how they are fetched."""

import dataclasses
import functools
import hashlib
import http.server
import json
import threading

import pytest

from nlhf_jax.data.tldr import downloads as tldr_downloads
from nlhf_jax.data.tldr import files as tldr_files
from nlhf_jax.errors import UserError
from tests.data import tldr_rows


def test_a_post_keeps_its_text_and_loses_the_space_before_its_summary(tmp_path):
    path = tldr_rows.write(tmp_path / "a.jsonl", [{**tldr_rows.post(1), "more": [1]}])
    (row,) = tldr_files.read_posts(path)
    assert dataclasses.asdict(row) == tldr_rows.post(1) | {"summary": "boss steals train 1"}


def test_the_prompt_has_the_usual_form():
    assert tldr_files.prompt("AskReddit", "A title", "A post.") == (
        "SUBREDDIT: r/AskReddit\n\nTITLE: A title\n\nPOST: A post.\n\nTL;DR:"
    )


def test_a_vote_tells_chosen_from_rejected(tmp_path):
    rows = [tldr_rows.vote(0, "valid1", 9), tldr_rows.vote(1, "valid2")]
    first, second = tldr_files.read_votes([tldr_rows.write(tmp_path / "a.json", rows)])
    assert (first.chosen, first.rejected) == ("first valid1 0", "second valid1 0")
    assert (second.chosen, second.rejected) == ("second valid2 1", "first valid2 1")
    assert (first.policies, second.policies) == (("sup1", "ref"), ("ref", "sup1"))
    assert (first.split, second.split) == ("validation", "test")
    assert (first.confidence, second.confidence) == (9, 0)
    assert (second.worker, second.batch) == ("worker1", "batch3")
    assert first.post == rows[0]["info"]["post"]


def test_a_vote_needs_neither_worker_nor_batch_nor_level(tmp_path):
    row = tldr_rows.vote(0)
    for key in ("worker", "batch", "extra"):
        del row[key]
    row["summaries"] = [{"text": ""}, {"text": " b"}]
    rows = [row, tldr_rows.vote(0, extra={"confidence": None})]
    bare, asked = tldr_files.read_votes([tldr_rows.write(tmp_path / "a.json", rows)])
    assert (bare.worker, bare.batch, bare.policies, bare.confidence) == ("", "", ("", ""), 0)
    assert bare.chosen == ""  # a sampler that said nothing, and was judged so
    assert asked.confidence == 0


def test_half_an_emoji_does_not_stop_the_build(tmp_path):
    row = tldr_rows.post(1) | {"post": "tired \ud83d"}
    (post,) = tldr_files.read_posts(tldr_rows.write(tmp_path / "a.jsonl", [row]))
    assert post.post == "tired ?"


def without(row: dict, *keys: str) -> dict:
    if len(keys) == 1:
        return {key: value for key, value in row.items() if key != keys[0]}
    return row | {keys[0]: without(row[keys[0]], *keys[1:])}


VOTE = tldr_rows.vote(0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(VOTE, "choice"), "the key 'choice' is missing; the line has"),
        (VOTE | {"choice": 2}, "'choice' must be 0 or 1, met 2"),
        (VOTE | {"choice": True}, "'choice' must be a whole number, met true"),
        (VOTE | {"choice": None}, "'choice' must be a whole number, met null"),
        (
            VOTE | {"split": "valid3"},
            r"'split' must be one of \['train', 'valid1', 'valid2'\], met",
        ),
        (without(VOTE, "split"), "the key 'split' is missing"),
        (without(VOTE, "info"), "the key 'info' is missing"),
        (without(VOTE, "info", "post"), "the key 'info.post' is missing"),
        (without(VOTE, "info", "subreddit"), "the key 'info.subreddit' is missing"),
        (VOTE | {"info": {"article": "News"}}, "a batch about news; wanted batch3 to batch20 and"),
        (VOTE | {"info": VOTE["info"] | {"post": " "}}, "'info.post' is blank"),
        (VOTE | {"summaries": VOTE["summaries"][:1]}, "'summaries' must be two objects"),
        (VOTE | {"summaries": [{"text": 1}, {}]}, "'summaries.text' must be text, met 1"),
        (VOTE | {"extra": {"confidence": 10}}, "'extra.confidence' must be 1 to 9, met 10"),
        (VOTE | {"extra": {"confidence": 0}}, "'extra.confidence' must be 1 to 9, met 0"),
        (VOTE | {"extra": {"confidence": "9"}}, "'extra.confidence' must be a whole number, met"),
        (["a list"], "wanted a JSON object, met"),
    ],
)
def test_a_bad_vote_is_named_with_its_file_and_line(tmp_path, row, message):
    path = tldr_rows.write(tmp_path / "batch3.json", [VOTE, row])
    with pytest.raises(UserError, match=f"batch3.json, line 2: .*{message}"):
        list(tldr_files.read_votes([path]))


@pytest.mark.parametrize("key", ["id", "subreddit", "title", "post", "summary"])
def test_a_post_needs_all_its_keys(tmp_path, key):
    rows = [tldr_rows.post(0), without(tldr_rows.post(1), key)]
    path = tldr_rows.write(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError, match=f"train.jsonl, line 2: the key '{key}' is missing"):
        list(tldr_files.read_posts(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "t3", "sub', "line 1: the file ends in the middle of this line, so it is not"),
        ('{"id": "t3", "sub\n', "line 1: not valid JSON: .* at column 18; delete the file, and"),
        ("\n <!DOCTYPE html>\n<p>503", "line 2: met a page of HTML, wanted one JSON object a line"),
        ("\n\n", "the file has no lines, wanted JSON objects; delete the file, and copy it again"),
        (b"\xff\n", "line 1: byte 1 of the line is not valid UTF-8"),
    ],
)
def test_a_file_that_is_not_whole_says_what_it_is(tmp_path, text, message):
    path = tmp_path / "train.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"train.jsonl(, |: ){message}"):
        list(tldr_files.read_posts(path))


def test_a_file_cut_after_many_lines_names_the_last(tmp_path):
    path = tldr_rows.write(tmp_path / "batch3.json", [tldr_rows.vote(n) for n in range(5)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="batch3.json, line 5: the file ends in the middle"):
        list(tldr_files.read_votes([path]))


def test_votes_are_counted_by_split_and_level(tmp_path):
    paths = [
        tldr_rows.write(tmp_path / f"{batch}.json", tldr_rows.votes(batch))
        for batch in ("batch3", "batch22")
    ]
    counts = tldr_files.count_votes(paths)
    assert counts == {
        ours: [tldr_rows.LEVELS[theirs].count(level or None) for level in range(10)]
        for theirs, ours in tldr_files.VOTE_SPLITS.items()
    }


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files; a query ?cut in their place says more bytes than it sends."""

    cut = False

    def log_message(self, *args):
        pass

    def copyfile(self, source, outputfile):
        outputfile.write(source.read()[: -10 if type(self).cut else None])


@pytest.fixture
def server(tmp_path):
    """A directory, the URL that serves it, and the paths that were asked for."""
    directory = tmp_path / "server"
    directory.mkdir()
    asked = []

    class Handler(_Quiet):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    handler = functools.partial(Handler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield directory, f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()
        thread.join()


PATHS = list(tldr_files.POST_FILES.values())


def names(directory) -> set[str]:
    return {file.name for file in directory.iterdir()}


def test_missing_files_are_fetched_and_recorded(server, tmp_path):
    directory, url, asked = server
    tldr_rows.write_posts(directory, nested=True)
    there = tmp_path / "files"
    there.mkdir()
    (there / "test.jsonl").write_text("mine")
    found = tldr_downloads.files(there, PATHS, download=True, base_url=url)
    assert [file.name for file in found] == ["train.jsonl", "valid.jsonl", "test.jsonl"]
    assert asked == [f"/{path}" for path in PATHS[:2]]
    assert found[2].read_text() == "mine"
    for file, path in zip(found[:2], PATHS[:2], strict=True):
        assert file.read_bytes() == (directory / path).read_bytes()
    lines = (there / "checksums.tsv").read_text().splitlines()
    body = (directory / PATHS[0]).read_bytes()
    sha256 = hashlib.sha256(body).hexdigest()
    assert lines[0].split("\t") == [f"{url}/{PATHS[0]}", str(len(body)), sha256]
    assert len(lines) == 2
    assert names(there) == {"train.jsonl", "valid.jsonl", "test.jsonl", "checksums.tsv"}

    tldr_downloads.files(there, PATHS, download=True, base_url=url)
    assert len(asked) == 2  # nothing again


@pytest.mark.parametrize("download", [True, False])
def test_a_file_that_changed_since_is_refused(server, tmp_path, download):
    directory, url, _ = server
    tldr_rows.write_posts(directory, nested=True)
    there = tmp_path / "files"
    valid = tldr_downloads.files(there, PATHS, download=True, base_url=url)[1]
    body = valid.read_bytes()
    changed = body.replace(b"boss", b"moss")
    valid.write_bytes(changed)
    sums = [hashlib.sha256(text).hexdigest() for text in (changed, body)]
    with pytest.raises(UserError, match=f"valid.jsonl: has .*{sums[0]}.* records .*{sums[1]}"):
        tldr_downloads.files(there, PATHS, download=download, base_url=url)


def test_a_download_that_is_not_what_it_was_is_refused(server, tmp_path):
    directory, url, _ = server
    tldr_rows.write_posts(directory, nested=True)
    there = tmp_path / "files"
    train = tldr_downloads.files(there, PATHS, download=True, base_url=url)[0]
    train.unlink()
    before = (there / "checksums.tsv").read_text()
    tldr_rows.write(directory / PATHS[0], [tldr_rows.post(7)])
    with pytest.raises(UserError, match=r"train.jsonl: has \d+ bytes with SHA-256 .* records"):
        tldr_downloads.files(there, PATHS, download=True, base_url=url)
    assert names(there) == {"valid.jsonl", "test.jsonl", "checksums.tsv"}
    assert (there / "checksums.tsv").read_text() == before


def test_part_of_a_download_never_takes_the_file_s_name(server, tmp_path, monkeypatch):
    directory, url, _ = server
    tldr_rows.write_posts(directory, nested=True)
    monkeypatch.setattr(_Quiet, "cut", True)
    size = len((directory / PATHS[0]).read_bytes())
    with pytest.raises(UserError, match=f"the download ended after {size - 10} of {size} bytes"):
        tldr_downloads.files(tmp_path / "files", PATHS, download=True, base_url=url)
    assert names(tmp_path / "files") == set()


def test_what_is_no_data_is_not_kept(server, tmp_path):
    directory, url, _ = server
    for text, message in [("\n<html>", "a page of HTML"), ("", "something that begins with b''")]:
        (directory / PATHS[0]).parent.mkdir(parents=True, exist_ok=True)
        (directory / PATHS[0]).write_text(text)
        with pytest.raises(UserError, match=f"train.jsonl: the server sent {message}, wanted JSON"):
            tldr_downloads.files(tmp_path / "files", PATHS[:1], download=True, base_url=url)
        assert names(tmp_path / "files") == set()


def test_a_server_without_the_file_is_a_user_error(server, tmp_path):
    _, url, _ = server
    with pytest.raises(UserError, match="train.jsonl: the server answers 404 .*FILES_DIR"):
        tldr_downloads.files(tmp_path / "files", PATHS, download=True, base_url=url)
    with pytest.raises(UserError, match="train.jsonl: cannot download it: "):
        tldr_downloads.files(
            tmp_path / "files", PATHS, download=True, base_url=url.rpartition(":")[0] + ":9"
        )


@pytest.mark.parametrize("nested", [False, True])
def test_files_that_are_there_are_found_in_either_layout(tmp_path, nested):
    tldr_rows.write_posts(tmp_path, nested)
    found = tldr_downloads.files(tmp_path, PATHS, download=False)
    assert [json.loads(file.read_text().splitlines()[0])["id"] for file in found] == [
        "t3_train0",
        "t3_validation0",
        "t3_test0",
    ]


def test_all_missing_files_are_named_at_once_and_none_is_fetched(server, tmp_path):
    directory, url, asked = server
    tldr_rows.write_votes(directory, nested=True)
    there = tldr_rows.write_votes(tmp_path / "files")
    (there / "batch5.json").unlink()
    (there / "batch22.json").unlink()
    paths = [tldr_files.vote_file(batch) for batch in tldr_files.BATCHES]
    with pytest.raises(
        UserError, match="2 of 19 files are not there: batch5.json, batch22.json; set FILES_DIR"
    ):
        tldr_downloads.files(there, paths, download=False, base_url=url)
    assert asked == []


def test_a_broken_record_of_checksums_is_a_user_error(tmp_path):
    tldr_rows.write_posts(tmp_path)
    (tmp_path / "checksums.tsv").write_text("http://x/train.jsonl 12 abc\n")
    with pytest.raises(UserError, match="checksums.tsv, line 1: wanted url, size and SHA-256"):
        tldr_downloads.files(tmp_path, PATHS, download=False)
