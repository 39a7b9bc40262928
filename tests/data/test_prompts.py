"""A prompt that is too long: its text is shortened, its form never."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlhf_jax import raters
from nlhf_jax.data import batches, datasets, json_lines, sources, tasks, templates
from nlhf_jax.data.prompts import PromptForm
from nlhf_jax.data.tldr.files import PROMPT_FORM
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL, tldr_mini_vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.judges import PreferenceModelJudge
from nlhf_jax.models.language_model import SpecialTokens
from tests.data import tldr_rows

WORDS = tldr_mini_vocabulary()
ENDED = PromptForm("boss - {prompt}\n\nsummary -")
FIXED = ("subreddit: r/", "title:", "post:", "tl;dr:")


def shortened(form: PromptForm, text: str, length: int) -> str:
    tokens = form.tokens(text, length, WORDS.encode)
    assert len(tokens) < length
    return WORDS.decode(tokens)


def test_a_form_fills_and_finds_its_fields():
    text = PROMPT_FORM.fill({"subreddit": "jobs", "title": "T", "post": "P\n\nTL;DR: x"})
    assert text == "SUBREDDIT: r/jobs\n\nTITLE: T\n\nPOST: P\n\nTL;DR: x\n\nTL;DR:"
    assert PROMPT_FORM.prompt_of({"prompt": text}) == text
    assert PROMPT_FORM.prompt_of({"prompt": " ".join(text.split())}).split() == text.split()
    assert PromptForm("{{{a}}}").fill({"a": "b"}) == "{b}"


@pytest.mark.parametrize(
    "form", ["", "TL;DR:", "{a}{a}", "{}", "{a!r}", "{a:>9}", "{a.b}", "{a", "}"]
)
def test_a_form_that_is_none_is_a_user_error(form):
    with pytest.raises(UserError, match="the prompt's form|in the prompt's form"):
        PromptForm(form)


def test_a_text_of_another_form_says_what_is_wanted():
    with pytest.raises(ValueError, match="not of the form 'SUBREDDIT.*'subreddit' and 'title'"):
        PROMPT_FORM.prompt_of({"prompt": "what shall I do?"})


@pytest.mark.parametrize("length", [48, 64, 100])
def test_the_post_gives_way_and_nothing_else(length):
    text = PROMPT_FORM.fill({"subreddit": "jobs", "title": "my boss", "post": "food " * 200})
    found = shortened(PROMPT_FORM, text, length)
    assert len(PROMPT_FORM.tokens(text, length, WORDS.encode)) == length - 1
    head, tail = PROMPT_FORM.fill({"subreddit": "jobs", "title": "my boss", "post": "|"}).split("|")
    assert found.startswith(" ".join(head.lower().split()))
    assert found.endswith("food " + tail.strip().lower())


def test_after_the_post_the_title_gives_way():
    text = PROMPT_FORM.fill({"subreddit": "jobs", "title": "food " * 99, "post": "my boss steals"})
    found = shortened(PROMPT_FORM, text, 60).split()
    words = found.count("food")
    assert found == ["subreddit:", "r/jobs", "title:", *["food"] * words, "post:", "tl;dr:"]
    assert words > 5 and len(PROMPT_FORM.tokens(text, 60, WORDS.encode)) == 59


texts = st.text(max_size=60) | st.text("ab r/\n:TL;DR", max_size=60)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(PROMPT_FORM.fields, texts)), st.integers(0, 60))
def test_no_text_takes_a_word_of_the_form(fields, more):
    text = PROMPT_FORM.fill(fields)
    bare = WORDS.encode(PROMPT_FORM.fill(dict.fromkeys(PROMPT_FORM.fields, "")))
    length = len(bare) + 2 + more
    tokens = PROMPT_FORM.tokens(text, length, WORDS.encode)
    assert len(tokens) < length
    whole = WORDS.encode(text)
    if len(whole) < length:
        assert tokens == whole
    else:
        rest = iter(tokens)
        assert all(token in rest for token in bare)  # in their order
        assert tokens[-len(WORDS.encode("TL;DR:")) :] == WORDS.encode("TL;DR:")


def test_a_length_without_room_for_the_form_is_a_user_error():
    with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS\['inputs'\] is 5 but the prompt's"):
        ENDED.check_length("inputs", 5, WORDS.encode)


def test_time_grows_with_the_length_and_not_its_square():
    text = "SUBREDDIT: r/" + "\n\nTITLE: " * 100_000
    assert len(PROMPT_FORM.tokens(text, 30, WORDS.encode)) == 29


# --- the tasks -----------------------------------------------------------------------------------

PROMPTS = ["my boss steals food", "my boss " * 40, "food " * 13, "boss\nsummary -"]
VOTES = [("food", "boss " * 30), ("boss " * 30, "food"), ("boss", "food"), ("my boss", "my food")]
LENGTHS = {"inputs": 16, "targets": 8, "text": 14, "summary": 6}


@pytest.fixture(scope="module")
def name(tmp_path_factory, template):
    directory = tmp_path_factory.mktemp("prompts")
    path = directory / "votes.jsonl"
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt, (chosen, rejected) in zip(PROMPTS, VOTES, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = directory / "sft.jsonl"
    sft.write_text("".join(json.dumps({"prompt": p, "completion": "um"}) + "\n" for p in PROMPTS))
    found = sources.json_lines_sources(
        sft={"train": str(sft)}, preferences={"train": str(path)}, form=ENDED
    )
    tasks.register_tasks("ended", found, WORDS, template, ENDED)
    return "ended"


@pytest.mark.parametrize(
    ("kind", "feature"), [("sft", "inputs"), ("prompts", "inputs"), ("comparisons", "text")]
)
def test_every_task_keeps_the_form_and_counts_what_it_cuts(name, kind, feature):
    examples = batches.load_examples(f"{name}_{kind}", "train", LENGTHS)
    assert examples.texts(feature) == [ENDED.fill({"prompt": prompt}) for prompt in PROMPTS]
    length = LENGTHS[feature]
    for row, text in zip(examples.arrays[feature], examples.texts(feature), strict=True):
        assert (
            row.tolist()[: len(row)]
            == (ENDED.tokens(text, length, WORDS.encode) + [1] + [0] * length)[:length]
        )
        assert WORDS.decode(row).startswith("boss -") and WORDS.decode(row).endswith("summary -")
    whole = [len(WORDS.encode(text)) + 1 for text in examples.texts(feature)]
    assert examples.truncated[feature] == sum(count > length for count in whole) == 2


def test_the_judge_shortens_prompts_as_the_data_does(name):
    examples = batches.load_examples(f"{name}_comparisons", "train", LENGTHS)
    asked = []

    def network(text, first, second):
        asked.append((text, first, second))
        return np.full(len(text), 0.5)

    def encode_prompt(text, length):
        return ENDED.tokens(text, length, WORDS.encode)

    judge = PreferenceModelJudge(network, WORDS.encode, SpecialTokens(), 14, 6, 4, encode_prompt)
    judge.compare(*(examples.texts(key) for key in ("text", "chosen", "rejected")))
    for found, key in zip(asked[0], ("text", "chosen", "rejected"), strict=True):
        np.testing.assert_array_equal(found, examples.arrays[key])


def test_device_and_data_pack_the_same_with_a_form(name, template):
    needed = templates.check_feature_lengths(template, {"text": 14, "summary": 6})
    examples = batches.load_examples(f"{name}_comparisons", "train", LENGTHS)
    host = batches.load_examples(
        f"{name}_preferences", "train", {**LENGTHS, "inputs": needed, "targets": 2}
    )
    text, chosen, rejected = (
        jnp.asarray(examples.arrays[k]) for k in ("text", "chosen", "rejected")
    )
    for shift, (first, second) in enumerate(((chosen, rejected), (rejected, chosen))):
        slots = {"text": text, "first": first, "second": second}
        device = raters.pack(template.segments, slots, SpecialTokens())
        np.testing.assert_array_equal(device, host.arrays["inputs"][shift::2])


@pytest.mark.parametrize("inputs", [20, 24, 30, 40, 90])
def test_in_t5x_the_text_gives_way_and_then_the_summaries_but_no_template(name, inputs):
    """T5X names "inputs" and "targets" alone."""
    lengths = {"inputs": inputs, "targets": 2}
    packed = batches.load_examples(f"{name}_preferences", "train", lengths).arrays["inputs"]
    for index, (row, (prompt, votes)) in enumerate(
        (row, pair)
        for number, pair in enumerate(zip(PROMPTS, VOTES, strict=True))
        for row in packed[2 * number : 2 * number + 2]
    ):
        tokens = row[: np.count_nonzero(row)]
        assert tokens[-1] == 1 and (tokens[:-1] > 1).all()
        first, second = votes if index % 2 == 0 else votes[::-1]
        words = WORDS.decode(row)
        head, _, rest = words.partition(" summary - summary 1 -")
        assert head.startswith("text - boss -") and " summary 2 -" in rest, words
        one, _, two = rest.partition(" summary 2 -")
        one, two = one.split(), two.split()
        assert (
            one and two and one == first.split()[: len(one)] and two == second.split()[: len(two)]
        )
        if (one, two) != (first.split(), second.split()):  # the text has nothing left to give
            assert len(head.split()) <= 5 and len(tokens) == inputs  # but one word
        elif head.split()[4:] != prompt.split():
            assert len(tokens) == inputs  # no token more was cut than had to be


def test_inputs_without_room_for_the_raters_template_are_a_user_error(name):
    with pytest.raises(
        UserError, match="the length of 'inputs' is 12 but the rater's template needs"
    ):
        batches.load_examples(f"{name}_preferences", "train", {"inputs": 12, "targets": 2})


def test_posts_of_tldr_end_in_their_tl_dr_however_long_they_are(tmp_path):
    files = tldr_rows.write_votes(tldr_rows.write_posts(tmp_path / "files"), nested=True)
    made = datasets.tldr(
        str(tmp_path / "built"),
        str(TLDR_MINI_MODEL),
        download=False,
        short_template=True,
        files_dir=str(files),
        batches=["batch3"],
    )
    for task, feature in (("sft", "inputs"), ("prompts", "inputs"), ("comparisons", "text")):
        lengths = (
            {"inputs": 60, "targets": 8} if feature == "inputs" else {"text": 56, "summary": 8}
        )
        examples = made.examples(task, "train", lengths)
        assert examples.truncated[feature] == len(examples) > 0
        for row in examples.arrays[feature]:
            assert WORDS.decode(row).endswith("tl;dr:"), WORDS.decode(row)
            assert all(part in WORDS.decode(row) for part in FIXED)


# --- nlhf sample ---------------------------------------------------------------------------------


def test_sample_reads_the_fields_of_the_form_or_a_prompt_that_has_it():
    content = (
        b'{"subreddit": "jobs", "title": "T", "post": "P"}\n'
        b'{"prompt": "SUBREDDIT: r/jobs TITLE: T POST: P TL;DR:"}\n'
        b'{"prompt": "P"}\n{"post": "P"}\n'
    )
    first, second, third, fourth = json_lines.scan_prompts(content, "p.jsonl", PROMPT_FORM)
    assert first == {"subreddit": "jobs", "title": "T", "post": "P"}
    assert PROMPT_FORM.prompt_of({"prompt": second}) == PROMPT_FORM.fill(first)
    assert "p.jsonl, line 3: the prompt is not of the form" in str(third)
    assert "p.jsonl, line 4: the key 'prompt' is missing; a line needs it, or" in str(fourth)
