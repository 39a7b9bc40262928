"""The TFDS builder of `tldr`, its filters, and the tasks over it."""

import copy
import inspect
import json
import os
import pathlib
import pickle
import subprocess
import sys

import gin
import numpy as np
import pytest

from nlhf_jax import configuration
from nlhf_jax.data import datasets, tasks, templates, vocabularies
from nlhf_jax.data.tf_imports import seqio, tf, tfds
from nlhf_jax.data.tldr import builder as tldr
from nlhf_jax.data.tldr import downloads as tldr_downloads
from nlhf_jax.data.tldr import files as tldr_files
from nlhf_jax.errors import UserError
from tests.data import tldr_rows

VOCABULARY = str(vocabularies.TLDR_MINI_MODEL)
POLICY_LENGTHS = {"inputs": 512, "targets": 64}
RATER_LENGTHS = {"text": 512, "summary": 64}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
    """Small files of all kinds, in the two layouts."""
    directory = tmp_path_factory.mktemp("files")
    return tldr_rows.write_votes(tldr_rows.write_posts(directory), nested=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
    """The data directory of all tests that need no build of their own."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture
def dataset(files, built):
    def make(**settings) -> datasets.Dataset:
        settings = {"batches": ["batch22", "batch3"], "files_dir": str(files)} | settings
        return datasets.tldr(
            str(built), VOCABULARY, **{"download": False, "short_template": False} | settings
        )

    return make


def decoded(row) -> dict:
    return {
        name: value.decode() if isinstance(value, bytes) else value for name, value in row.items()
    }


def builder(data_dir, files_dir, batches=("batch3", "batch22"), **settings) -> tldr.Tldr:
    config = tldr.preferences_config(list(batches))
    return tldr.Tldr(config=config, data_dir=data_dir, files_dir=files_dir, **settings)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("sft", {"train": 6, "validation": 3, "test": 2}),
        ("preferences", {"train": 6 + 17, "validation": 3, "test": 6}),
    ],
)
def test_tfds_knows_it_by_name_and_finds_it_again(files, built, config, sizes):
    tldr.read(tldr.Tldr(config=config, data_dir=built, files_dir=files), "train")
    again = tfds.builder(f"tldr/{config}", data_dir=built)  # without the files
    assert again.is_prepared()
    assert {name: split.num_examples for name, split in again.info.splits.items()} == sizes
    assert "Stiennon" in again.info.citation
    seen = set()
    for split, size in sizes.items():
        rows = again.as_dataset(split=split)
        assert rows.element_spec == again.info.features.get_tensor_spec()
        seen |= {str(decoded(row)) for row in rows.as_numpy_iterator()}
        assert len(list(rows)) == size
    assert len(seen) == sum(sizes.values())  # all different, within splits and across


def test_votes_come_in_the_order_of_the_batches_with_all_that_is_known(files, built):
    rows = [decoded(row) for row in tldr.read(builder(built, files), "test").as_numpy_iterator()]
    assert [row["batch"] for row in rows] == ["batch3"] * 3 + ["batch22"] * 3
    assert [row["confidence"] for row in rows] == [1, 5, 9, 2, 8, 9]
    assert [row["worker"] for row in rows] == [f"worker{n % 3}" for n in (0, 2, 4, 1, 3, 5)]
    assert rows[3]["policies"].tolist() == [b"ref", b"sup1"]
    assert rows[3]["chosen"] == "second valid2 1"
    assert rows[3]["title"] == "My boss and I, part 1"
    again = tldr.read(builder(built, files), "test").as_numpy_iterator()
    assert [str(decoded(row)) for row in again] == [str(row) for row in rows]


def test_it_builds_without_a_word(files, tmp_path, capfd):
    capfd.readouterr()
    tldr.read(builder(tmp_path, files, ["batch4"]), "train")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("levels", [None, (1, 2, 8, 9), [9], (5, 4, 5)])
def test_a_filter_keeps_the_votes_of_its_levels(dataset, split, levels):
    theirs = {"train": "train", "validation": "valid1", "test": "valid2"}[split]
    kept = [x for x in tldr_rows.LEVELS[theirs] if levels is None or x in levels]
    made = dataset(**{f"{split}_confidence": levels})
    task = seqio.get_mixture_or_task("tldr_comparisons")
    if not kept:
        with pytest.raises(UserError, match=f"no votes with confidence .* the split '{split}'"):
            made.examples("comparisons", split, RATER_LENGTHS)
        return
    examples = made.examples("comparisons", split, RATER_LENGTHS)
    assert len(examples) == len(kept) == task.num_input_examples(split)
    assert examples.arrays["vote_share"].tolist() == [1.0] * len(kept)
    others = {"train", "validation", "test"} - {split}
    assert sum(task.num_input_examples(other) for other in others) == sum(
        len(tldr_rows.LEVELS[name])
        for name, ours in tldr_files.VOTE_SPLITS.items()
        if ours in others
    )


@pytest.mark.parametrize("levels", [(), (0, 1), (10,), ("9",)])
def test_levels_that_are_none_are_a_user_error(dataset, levels):
    with pytest.raises(UserError, match="TEST_CONFIDENCE is .*; wanted some of the levels 1 to 9"):
        dataset(test_confidence=levels)


def test_a_policy_reads_the_prompt_and_learns_the_summary(dataset):
    vocabulary = dataset().vocabulary
    examples = dataset().examples("sft", "validation", POLICY_LENGTHS)
    posts = [tldr_rows.post(number, "validation") for number in range(3)]
    prompts = [tldr_files.prompt(row["subreddit"], row["title"], row["post"]) for row in posts]
    summaries = [row["summary"].strip() for row in posts]
    assert examples.texts("inputs") == prompts
    assert examples.texts("targets") == summaries
    assert [vocabulary.decode(row) for row in examples.arrays["targets"]] == summaries
    asked = dataset().examples("prompts", "validation", POLICY_LENGTHS)
    assert asked.texts("inputs") == prompts
    assert asked.texts("references") == [[summary] for summary in summaries]


def test_a_rater_reads_the_paper_s_template_in_both_orders(dataset):
    made = dataset(test_confidence=(9,))
    needed = templates.check_feature_lengths(made.rater, RATER_LENGTHS)
    lengths = {**RATER_LENGTHS, "inputs": needed, "targets": 4}
    packed = made.examples("preferences", "test", lengths)
    words = [made.vocabulary.decode(row) for row in packed.arrays["inputs"]]
    expected = []
    for number, summaries in ((4, ("first", "second")), (5, ("second", "first"))):
        post = tldr_rows.post(number, "valid2")
        text = tldr_files.prompt(post["subreddit"], post["title"], post["post"])
        first, second = (f"{which} valid2 {number}" for which in summaries)
        expected += [
            f"{templates.RATER_INSTRUCTION} {text} , Summary 1 - {a} , Summary 2 - {b}"
            for a, b in ((first, second), (second, first))
        ]
    assert [text.replace(" ", "") for text in words] == [
        "".join(text.lower().split()) for text in expected
    ]
    answers = [made.vocabulary.decode(row) for row in packed.arrays["targets"]]
    assert answers == ["1", "2", "1", "2"]


def test_batches_are_part_of_what_a_build_is(files, built):
    assert tldr.preferences_config().name == "preferences"
    assert tldr.preferences_config(tldr_files.BATCHES[::-1]) is tldr.preferences_config()
    one, both = builder(built, files, ["batch3"]), builder(built, files)
    assert both.builder_config.name == "preferences_batch3_batch22"
    sizes = [len(list(tldr.read(each, "test"))) for each in (both, one, both)]
    assert sizes == [6, 3, 6]


@pytest.mark.parametrize("names", [["batch3", "batch21"], [], "batch3", ["batch0_cnndm"]])
def test_batches_that_do_not_exist_are_a_user_error(dataset, names):
    with pytest.raises(UserError, match="BATCHES is .*; wanted a list with some of batch3, batch4"):
        dataset(batches=names)


def test_a_split_that_the_batches_lack_is_a_user_error(dataset):
    made = dataset(batches=["batch4"])
    assert len(made.examples("comparisons", "train", RATER_LENGTHS)) == 1
    with pytest.raises(
        UserError, match=r"tldr has no votes in the split 'test' \(batches batch4\)"
    ):
        made.examples("comparisons", "test", RATER_LENGTHS)


def test_missing_batches_are_all_named(files, tmp_path):
    some = tldr_rows.write(tmp_path / "files" / "batch3.json", tldr_rows.votes("batch3")).parent
    with pytest.raises(UserError, match=r"18 of 19 files are not there: batch4.json, .*batch22"):
        tldr.read(builder(tmp_path / "data", some, tldr_files.BATCHES), "train")


def test_files_are_looked_for_below_the_data_directory(tmp_path):
    tldr_rows.write_posts(tmp_path / "downloads" / "tldr")
    made = tldr.Tldr(config="sft", data_dir=tmp_path)
    assert len(list(tldr.read(made, "test"))) == 2


@pytest.mark.parametrize("config", ["sft", "preferences_batch3_batch22"])
def test_after_a_failed_build_a_good_one_works(files, tmp_path, config):
    bad = tldr_rows.write_votes(tldr_rows.write_posts(tmp_path / "bad"))
    for name in ("test.jsonl", "batch22.json"):
        (bad / name).write_bytes((bad / name).read_bytes()[:-9])

    def made(directory):
        settings = {"data_dir": tmp_path / "data", "files_dir": directory}
        if config == "sft":
            return tldr.Tldr(config="sft", **settings)
        return builder(**settings)

    with pytest.raises(UserError, match="line .: the file ends in the middle of this line"):
        tldr.read(made(bad), "train")
    assert list((tmp_path / "data").rglob("*.tfrecord*")) == []
    assert not made(bad).is_prepared()
    assert len(list(tldr.read(made(files), "train"))) == 6


def test_downloads_feed_a_build_and_are_made_only_if_asked_for(files, tmp_path, monkeypatch):
    asked = []

    def fetch(url, part):
        asked.append(url)
        name = url.rpartition("/")[2]
        part.write_bytes(next(files.rglob(name)).read_bytes())

    monkeypatch.setattr(tldr_downloads, "_fetch", fetch)
    with pytest.raises(UserError, match="DOWNLOAD = True to fetch them from https://openaipublic"):
        tldr.read(builder(tmp_path, None), "test")
    assert asked == []
    rows = list(tldr.read(builder(tmp_path, None, download=True), "test"))
    assert len(rows) == 6
    base = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset/comparisons"
    assert asked == [f"{base}/batch3.json", f"{base}/batch22.json"]
    record = tmp_path / "downloads" / "tldr" / "checksums.tsv"
    assert [line.split("\t")[0] for line in record.read_text().splitlines()] == asked


def test_the_tasks_are_those_of_the_last_settings(dataset):
    """The stages of a chain share what they have read; their tasks share names."""
    all_votes, sure = dataset(), dataset(test_confidence=(9,))
    assert dataset() is all_votes and sure is not all_votes
    assert len(dataset().examples("comparisons", "test", RATER_LENGTHS)) == 6
    assert len(dataset(test_confidence=[9]).examples("comparisons", "test", RATER_LENGTHS)) == 2


def write_cache(task: seqio.Task, split: str, directory: pathlib.Path) -> None:
    """What `seqio_cache_tasks` writes, which itself needs Apache Beam."""
    rows = list(task.preprocess_precache(task.source.get_dataset(split, shuffle=False)))
    target = directory / seqio.get_task_dir_from_name(task.name)
    target.mkdir(parents=True, exist_ok=True)
    prefix = seqio.get_cached_tfrecord_prefix(str(target), split)
    with tf.io.TFRecordWriter(f"{prefix}-00000-of-00001") as writer:
        for row in rows:
            writer.write(seqio.dict_to_tfexample(row).SerializeToString())
    features = {}
    for name, value in rows[0].items():
        shape = value.shape.as_list()
        features[name] = {"shape": [None, *shape[1:]] if shape else [], "dtype": value.dtype.name}
    info = {"num_shards": 1, "features": features, "seqio_version": seqio.__version__}
    pathlib.Path(seqio.get_cached_info_path(str(target), split)).write_text(json.dumps(info))
    stats = json.dumps({"examples": len(rows)})
    pathlib.Path(seqio.get_cached_stats_path(str(target), split)).write_text(stats)
    (target / "COMPLETED").write_text("")


@pytest.mark.parametrize("kind", ["sft", "prompts", "comparisons", "preferences"])
def test_cached_tasks_give_what_others_give(dataset, tmp_path, monkeypatch, kind):
    dataset()
    task = seqio.get_mixture_or_task(f"tldr_{kind}")
    write_cache(task, "validation", tmp_path)
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [str(tmp_path)])
    for length in (500, 48 if kind != "preferences" else 180):  # one cache for whatever lengths
        lengths = dict.fromkeys(("inputs", "targets", "text", "chosen", "rejected"), length)

        def rows(use_cached, lengths=lengths):
            return task.get_dataset(lengths, "validation", use_cached=use_cached, shuffle=False)

        cached, direct = rows(True), rows(False)
        assert {name: spec.dtype for name, spec in cached.element_spec.items()} == {
            name: spec.dtype for name, spec in direct.element_spec.items()
        }
        both = list(zip(cached.as_numpy_iterator(), direct.as_numpy_iterator(), strict=True))
        assert len(both) == {"preferences": 6}.get(kind, 3)
        for one, other in both:
            assert set(one) == set(other)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


REGISTERED = f"""
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise AssertionError(event)
    if event == "open" and str(arguments[0]).endswith((".model", ".jsonl")):
        raise AssertionError(arguments)
armed = True
sys.addaudithook(lambda event, arguments: watch(event, arguments) if armed else None)
from nlhf_jax.data import registered_tasks
from nlhf_jax.data.tf_imports import seqio
names = [f"{{name}}_{{kind}}" for name in ("tldr_mini", "tldr")
         for kind in ("sft", "prompts", "comparisons", "preferences")]
tasks = {{name: seqio.get_mixture_or_task(name) for name in names}}
assert all(set(task.splits) == {{"train", "validation", "test"}} for task in tasks.values())
assert all(task.supports_caching for task in tasks.values())
assert tasks["tldr_sft"].num_input_examples("test") is None
assert not os.path.exists(os.environ["TFDS_DATA_DIR"])
armed = False

def rows(name, **lengths):
    return list(tasks[name].get_dataset(lengths, "test", shuffle=False).as_numpy_iterator())

assert len(rows("tldr_sft", inputs=512, targets=64)) == 2
assert tasks["tldr_sft"].num_input_examples("test") == 2
assert os.path.isdir(os.environ["TFDS_DATA_DIR"] + "/tldr/sft")
seqio.set_tfds_data_dir_override(os.environ["ELSEWHERE"])
assert len(rows("tldr_preferences", inputs=512, targets=4)) == 12
assert os.path.isdir(os.environ["ELSEWHERE"] + "/tldr/preferences")
stock = seqio.SentencePieceVocabulary({VOCABULARY!r})  # what T5X's own gin files name
for words, name in ((registered_tasks.tldr_vocabulary(), "tldr_sft"),
                    (registered_tasks.tldr_mini_vocabulary(), "tldr_mini_sft")):
    assert words == tasks[name].output_features["inputs"].vocabulary == words
    assert words == stock and stock == words and not words != stock and not stock != words
print("all")
"""


def test_registered_tasks_touch_nothing_before_a_split_is_read(files, tmp_path):
    result = python(
        REGISTERED,
        TFDS_DATA_DIR=str(tmp_path / "tfds"),
        ELSEWHERE=str(tmp_path / "elsewhere"),
        NLHF_TLDR_FILES=str(files),
        NLHF_VOCABULARY=VOCABULARY,
    )
    assert (result.returncode, result.stdout) == (0, "all\n"), result.stderr


@pytest.fixture
def clear_gin():
    yield
    gin.clear_config()


def test_the_gin_file_configures_the_dataset(files, built, clear_gin):
    macros = {
        "DATA_DIR": str(built),
        "FILES_DIR": str(files),
        "VOCABULARY": VOCABULARY,
        "BATCHES": ["batch3", "batch22"],
    }
    configuration.parse(["tasks/tldr.gin"], macros=macros)
    made = gin.get_configurable(datasets.tldr)()
    kept = [level for level in tldr_rows.LEVELS["valid2"] if level in (1, 2, 8, 9)]
    assert len(made.examples("comparisons", "test", RATER_LENGTHS)) == len(kept) < 6
    assert len(made.examples("comparisons", "train", RATER_LENGTHS)) == 6
    parameters = inspect.signature(datasets.tldr).parameters
    assert set(gin.get_bindings(datasets.tldr)) == set(parameters)


def test_t5x_can_name_the_vocabularies_in_gin():
    """Gin copies what it is given, and Beam pickles it: before it is loaded and after."""
    words = tasks.SeqioVocabulary(vocabularies.tldr_mini_vocabulary)
    for each in (words, copy.deepcopy(words), pickle.loads(pickle.dumps(words))):
        assert each == tasks.SeqioVocabulary(vocabularies.tldr_mini_vocabulary())
        assert each.encode("boss") == words.vocabulary.encode("boss")
        assert each != seqio.ByteVocabulary()
