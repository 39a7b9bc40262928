"""The seqio tasks, over `tldr_mini` and over users' files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import raters
from nlhf_jax.data import batches, json_lines, templates
from nlhf_jax.data.tf_imports import seqio
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.errors import UserError
from nlhf_jax.models.language_model import SpecialTokens
from tests.data.conftest import LENGTHS


@pytest.fixture
def files(tmp_path):
    """Writes JSON lines; gives the path."""

    def write(name: str, rows: list[dict]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def user_tasks(vocabulary, template):
    def register(**paths):
        from nlhf_jax.data import sources, tasks

        return tasks.register_tasks(
            "user", sources.json_lines_sources(**paths), vocabulary, template
        )

    return register


def content(row) -> list[int]:
    """Token ids without EOS and padding."""
    return [int(token) for token in row if token > 1]


def test_sft_has_one_example_for_each_reference(mini_tasks, vocabulary):
    examples = batches.load_examples(f"{mini_tasks}_sft", "validation", LENGTHS)
    pairs = [
        (post.text.lower(), summary)
        for post, summaries in tldr_mini_text.references("validation")
        for summary in summaries
    ]
    found = [
        (vocabulary.decode(inputs), vocabulary.decode(targets))
        for inputs, targets in zip(
            examples.arrays["inputs"], examples.arrays["targets"], strict=True
        )
    ]
    assert found == pairs
    assert examples.truncated == {"inputs": 0, "targets": 0}
    for name in ("inputs", "targets"):
        assert examples.arrays[name].dtype == np.int32
        assert (np.sum(examples.arrays[name] == 1, axis=1) == 1).all()  # EOS, once


def test_prompts_come_once_with_their_references(mini_tasks):
    examples = batches.load_examples(f"{mini_tasks}_prompts", "validation", LENGTHS)
    expected = list(tldr_mini_text.references("validation"))
    assert examples.texts("inputs") == [post.text for post, _ in expected]
    assert examples.texts("references") == [summaries for _, summaries in expected]
    assert set(examples.arrays) == {"inputs"}


def test_comparisons_keep_the_votes(mini_tasks, vocabulary):
    examples = batches.load_examples(f"{mini_tasks}_comparisons", "validation", LENGTHS)
    votes = list(tldr_mini_text.votes("validation"))
    assert len(examples) == len(votes)
    assert examples.texts("text") == [vote.post.text for vote in votes]
    assert examples.texts("chosen") == [vote.chosen for vote in votes]
    assert [vocabulary.decode(row) for row in examples.arrays["rejected"]] == [
        vote.rejected for vote in votes
    ]
    assert examples.arrays["vote_share"].dtype == np.float32
    weights = np.asarray([vote.weight for vote in votes], np.float32)
    np.testing.assert_array_equal(examples.arrays["vote_share"], weights)
    assert {name: a.shape[1:] for name, a in examples.arrays.items()} == {
        "text": (40,),
        "chosen": (16,),
        "rejected": (16,),
        "vote_share": (),
    }


def test_preferences_show_each_comparison_in_both_orders(mini_tasks, template, vocabulary):
    lengths = {**LENGTHS, "inputs": templates.check_feature_lengths(template, {
        "text": 40, "summary": 16,
    })}  # fmt: skip
    packed = batches.load_examples(f"{mini_tasks}_preferences", "validation", lengths)
    votes = list(tldr_mini_text.votes("validation"))
    assert len(packed) == 2 * len(votes)
    assert [vocabulary.decode(row) for row in packed.arrays["targets"]] == ["1", "2"] * len(votes)
    for index, vote in enumerate(votes[:50]):
        for shift, (first, second) in enumerate(
            ((vote.chosen, vote.rejected), (vote.rejected, vote.chosen))
        ):
            assert vocabulary.decode(packed.arrays["inputs"][2 * index + shift]) == (
                f"text - {vote.post.text.lower()} summary 1 - {first} summary 2 - {second}"
            )


@pytest.mark.parametrize("lengths", [{"text": 40, "summary": 16}, {"text": 25, "summary": 6}])
def test_the_device_packs_exactly_as_the_data_does(mini_tasks, template, lengths):
    """Also where texts are cut; raters learn from one packing and judge through the other."""
    needed = templates.check_feature_lengths(template, lengths)
    examples = batches.load_examples(f"{mini_tasks}_comparisons", "validation", lengths)
    host = batches.load_examples(
        f"{mini_tasks}_preferences", "validation", {**lengths, "inputs": needed, "targets": 2}
    )
    assert (examples.truncated["text"] > 0) == (lengths["text"] == 25)
    rows = (examples.arrays[name][:100] for name in ("text", "chosen", "rejected"))
    text, chosen, rejected = map(jnp.asarray, rows)
    for shift, (first, second) in enumerate(((chosen, rejected), (rejected, chosen))):
        device = raters.pack(
            template.segments, {"text": text, "first": first, "second": second}, SpecialTokens()
        )
        assert device.shape == (100, needed)
        np.testing.assert_array_equal(device, host.arrays["inputs"][shift:200:2])


def test_preferences_train_in_t5x_as_they_are(mini_tasks, template, vocabulary):
    """T5X asks for "inputs" and "targets" alone: the text gives way, the summaries stay whole."""
    dataset = seqio.get_mixture_or_task(f"{mini_tasks}_preferences").get_dataset(
        sequence_length={"inputs": 45, "targets": 2}, split="validation", shuffle=True, seed=3
    )
    converted = seqio.EncDecFeatureConverter(pack=False)(
        dataset, task_feature_lengths={"inputs": 45, "targets": 2}
    )
    answers = set()
    for row in converted.take(60).as_numpy_iterator():
        tokens = row["encoder_input_tokens"]
        assert tokens.shape == (45,)
        assert tokens[np.count_nonzero(tokens) - 1] == 1
        text = vocabulary.decode(tokens)
        assert text.startswith("text - ")
        assert " summary 1 - " in text and " summary 2 - " in text
        answers.add(vocabulary.decode(row["decoder_target_tokens"]))
    assert answers == {"1", "2"}


def test_sft_trains_in_t5x_as_it_is(mini_tasks):
    task = seqio.get_mixture_or_task(f"{mini_tasks}_sft")
    dataset = task.get_dataset(
        sequence_length={"inputs": 40, "targets": 16}, split="train", shuffle=True, seed=1
    )
    converted = seqio.EncDecFeatureConverter(pack=True)(
        dataset, task_feature_lengths={"inputs": 80, "targets": 64}
    )
    row = next(iter(converted.as_numpy_iterator()))
    assert row["encoder_segment_ids"].max() > 1  # several examples in one row


def test_feature_lengths_too_short_for_the_template_are_a_user_error(mini_tasks):
    with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS\['inputs'\] is 50 but the rater's"):
        batches.load_examples(f"{mini_tasks}_preferences", "validation", {**LENGTHS, "inputs": 50})


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"inputs": 40}, r"TASK_FEATURE_LENGTHS has no 'targets', which the task 'tldr_mini_sft'"),
        ({"inputs": 1, "targets": 16}, r"TASK_FEATURE_LENGTHS\['inputs'\] is 1; wanted a whole"),
        ({"inputs": 40, "targets": None}, r"TASK_FEATURE_LENGTHS\['targets'\] is None; wanted"),
    ],
)
def test_feature_lengths_missing_or_senseless_are_a_user_error(mini_tasks, lengths, message):
    with pytest.raises(UserError, match=message):
        batches.load_examples(f"{mini_tasks}_sft", "validation", lengths)


def test_a_split_that_is_not_there_is_a_user_error(mini_tasks):
    with pytest.raises(UserError, match="'tldr_mini_sft' has no split 'dev'; it has .*validation"):
        batches.load_examples(f"{mini_tasks}_sft", "dev", LENGTHS)


def test_long_texts_are_cut_and_counted_and_still_end(files, user_tasks, vocabulary):
    path = files(
        "sft.jsonl",
        [
            {"prompt": "my boss " * count, "completion": "um " * count}
            for count in (1, 3, 4, 8, 15, 16)
        ],
    )
    user_tasks(sft={"train": path})
    examples = batches.load_examples("user_sft", "train", {"inputs": 8, "targets": 16})
    assert examples.truncated == {"inputs": 4, "targets": 1}
    for row, count in zip(examples.arrays["inputs"], (1, 3, 4, 8, 15, 16), strict=True):
        assert (
            vocabulary.decode(row)
            == ("my boss " * count).strip()[: len("my boss my boss my boss my")]
        )
        assert np.sum(row == 1) == 1 and len(content(row)) == min(2 * count, 7)  # fmt: skip


def test_prompts_of_users_are_those_of_the_sft_file_unless_given(files, user_tasks):
    sft = files(
        "sft.jsonl",
        [
            {"prompt": "post a", "completion": "one"},
            {"prompt": "post b", "completion": "two"},
            {"prompt": "post a", "completion": "three"},
        ],
    )
    user_tasks(sft={"train": sft})
    examples = batches.load_examples("user_prompts", "train", LENGTHS)
    assert examples.texts("inputs") == ["post a", "post b"]
    assert examples.texts("references") == [["one", "three"], ["two"]]
    prompts = files("prompts.jsonl", [{"prompt": "another"}])
    user_tasks(sft={"train": sft}, prompts={"train": prompts})
    examples = batches.load_examples("user_prompts", "train", LENGTHS)
    assert examples.texts("inputs") == ["another"]
    assert examples.texts("references") == [[]]


def test_weights_of_users_reach_the_learner(files, user_tasks):
    row = {"prompt": "x", "chosen": "a", "rejected": "b"}
    path = files("votes.jsonl", [row, {**row, "weight": 0.75}])
    names = user_tasks(preferences={"train": path, "test": path})
    assert names == ["user_comparisons", "user_preferences"]
    examples = batches.load_examples("user_comparisons", "test", LENGTHS)
    assert examples.arrays["vote_share"].tolist() == [1.0, 0.75]


def test_a_bad_line_surfaces_as_itself(files, user_tasks):
    path = files("votes.jsonl", [{"prompt": "x", "chosen": "a", "rejected": "a"}])
    user_tasks(preferences={"train": path})
    with pytest.raises(UserError, match="votes.jsonl, line 1: 'chosen' and 'rejected' are the"):
        batches.load_examples("user_comparisons", "train", LENGTHS)


def test_a_task_without_files_is_a_user_error(files, user_tasks):
    votes = files("votes.jsonl", [{"prompt": "x", "chosen": "a", "rejected": "b"}])
    user_tasks(preferences={"train": votes})
    user_tasks(sft={"train": files("a.jsonl", [{"prompt": "x", "completion": "y"}])})
    with pytest.raises(UserError, match="no data for the task 'user_comparisons'; name its files"):
        batches.load_examples("user_comparisons", "train", LENGTHS)


def test_a_file_that_does_not_exist_is_found_out_before_it_is_read(files, user_tasks):
    paths = {"train": files("a.jsonl", [{"prompt": "x"}]), "test": "nowhere.jsonl"}
    with pytest.raises(UserError, match="nowhere.jsonl: cannot read the file: there is none"):
        user_tasks(prompts=paths)


def test_tasks_register_again_with_other_files(files, user_tasks):
    for text in ("first", "second"):
        user_tasks(prompts={"train": files(f"{text}.jsonl", [{"prompt": text}])})
        assert batches.load_examples("user_prompts", "train", LENGTHS).texts("inputs") == [text]


def test_seqio_tokens_are_those_of_the_vocabulary(vocabulary):
    from nlhf_jax.data.tasks import SeqioVocabulary

    words = SeqioVocabulary(vocabulary)
    for text in ("My boss steals food.", "Zebra #42\nnew line  twice", "日本 ok", ""):
        expected = vocabulary.encode(text)
        assert words.encode(text) == expected
        assert words.encode_tf(text).numpy().tolist() == expected
        assert words.decode([*expected, 1, 5]) == vocabulary.decode(expected)
    assert (words.pad_id, words.eos_id, words.unk_id) == (0, 1, 2)
    assert words.vocab_size == vocabulary.size


def test_kinds_of_files_are_the_arguments_of_the_sources():
    assert set(json_lines.KINDS) == {"sft", "preferences", "prompts"}
