"""Files in buckets and on disk, and paths that cannot be written."""

import os
import sys
from pathlib import Path

import pytest
from etils import epath

from nlhf_jax import configuration
from nlhf_jax.data import json_lines
from nlhf_jax.errors import UserError
from nlhf_jax.files import absolute, check_writable, open_to_append, write_whole
from nlhf_jax.main import main
from nlhf_jax.metrics import MetricWriter
from tests.buckets import Bucket, Storage


def test_a_buckets_path_is_absolute_as_it_is():
    assert str(absolute("gs://bucket/run")) == "gs://bucket/run"
    assert absolute("run") == epath.Path(os.getcwd()) / "run"


def test_an_object_is_replaced_and_grows(bucket: Bucket):
    write_whole(f"{bucket}/run/a.json", "long before")
    write_whole(f"{bucket}/run/a.json", "now")
    assert bucket.read("run/a.json") == b"now"
    for number in range(4):
        if number % 2 == 0:
            grows = open_to_append(f"{bucket}/run/lines")
        grows.write(f"{number}\n".encode())
        grows.flush()
        assert bucket.read("run/lines").split() == [b"%d" % n for n in range(number + 1)]


def test_what_another_program_made_longer_is_read_whole(bucket: Bucket):
    path = epath.Path(bucket.write("lines", b"one"))
    assert path.read_bytes() == b"one"
    bucket.write("lines", b"one and two")
    assert path.read_bytes() == b"one and two"


def test_metrics_in_a_bucket_are_those_on_disk_after_every_write(bucket: Bucket, tmp_path: Path):
    for restored_step in (0, 20):  # the second attempt continues the first one
        places = (str(tmp_path), f"{bucket}/run")
        writers = [MetricWriter(place, restored_step=restored_step) for place in places]
        for step in (10, 20, 30):
            for writer in writers:
                writer.write(restored_step + step, "train", {"loss": 1 / step})
            assert bucket.read("run/metrics.jsonl") == (tmp_path / "metrics.jsonl").read_bytes()
            # Events carry the time; their sizes do not.
            there = [len(bucket.read(name)) for name in bucket.names("run/events")]
            assert there == [path.stat().st_size for path in sorted(tmp_path.glob("events*"))]
        for writer in writers:
            writer.close()


def test_what_is_in_a_bucket_and_bad_is_one_error(storage_server: Storage, bucket: Bucket):
    path = bucket.write("bad.gin", b"A = 1\nB = [\n")
    with pytest.raises(UserError, match=f"^{path}, line 3: EOF"):
        configuration.parse([path])
    with pytest.raises(UserError, match=f"the gin file {bucket}/no.gin does not exist"):
        configuration.parse([f"{bucket}/no.gin"])
    path = bucket.write("sft.jsonl", b'{"prompt": "a", "completion": "b"}\n{}\n')
    with pytest.raises(UserError, match=f"^{path}, line 2: the key 'prompt' is missing"):
        json_lines.read(path, "sft")
    path = storage_server.make_bucket("no-access-to-data").write("sft.jsonl", b"{}")
    with pytest.raises(UserError, match=f"^{path}: cannot read the file: .* 401"):
        json_lines.read(path, "sft")


# --- refused before anything runs ----------------------------------------------------------------

CHAIN = "--gin_file=quickstart.gin"
JOBS = {
    "run": ["run", CHAIN, "--workdir={}"],
    "train": ["train", CHAIN, "--workdir={}"],
    "evaluate": ["evaluate", CHAIN, "--workdir={}"],
    "report": ["report", "--workdir={}"],
    "sample": ["sample", "--checkpoint=none", "--prompts=file", "--output={}/samples.jsonl"],
    "convert": ["convert", "--checkpoint=none", "--to=nlhf", "--output={}"],
    "data": ["data", "vocabulary", "sft:none", "--size=100", "--output={}/words.model"],
}
PLACES = {
    "s3://bucket/run": "give a local directory or a bucket of Google Cloud Storage",
    "unknown://bucket/run": "give a local directory or a bucket of Google Cloud Storage",
    "gs:/bucket/run": "give a local directory or a bucket of Google Cloud Storage",
    "gs://": "give a local directory or a bucket of Google Cloud Storage",
    "file/run": "Not a directory",
    "/proc/run": "No such file or directory",  # nobody can write there, not even root
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("job", JOBS)
def test_every_job_refuses_a_place_that_cannot_be_written(
    job, place, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("a prompt")
    assert main([argument.format(place) for argument in JOBS[job]]) == 2
    error = capsys.readouterr().err
    option = JOBS[job][-1].format(place)
    assert error.startswith(f"nlhf: error: {option} cannot be written: {PLACES[place]}")
    assert error.count("\n") == 1
    assert os.listdir() == ["file"]


def test_a_bucket_that_can_be_written_is_left_as_it_was(bucket: Bucket):
    check_writable(f"{bucket}/run", "--workdir")
    assert bucket.names() == []


@pytest.mark.parametrize("name, status", [("no-writes", 403), ("no-access", 401)])
def test_a_bucket_that_refuses_is_refused(storage_server: Storage, bucket: Bucket, name, status):
    storage_server.make_bucket(name)
    with pytest.raises(
        UserError, match=f"cannot be written: .*{status}.*; a run needs credentials"
    ):
        check_writable(f"gs://{name}/run", "--workdir")


def test_a_bucket_that_is_not_there_is_refused(bucket: Bucket):
    with pytest.raises(UserError, match="^--workdir=gs://no-bucket/run cannot be written: .*404"):
        check_writable("gs://no-bucket/run", "--workdir")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(UserError, match=r"pip install 'nlhf_jax\[gcs\]'"):
        check_writable("gs://bucket/run", "--workdir")
