"""`nlhf convert`: a checkpoint of one format into another."""

import contextlib
import math
from collections.abc import Iterator, Mapping

import jax
from etils import epath

from nlhf_jax import checkpoints
from nlhf_jax.checkpoints.arrays import check_fits, flattened, read_to_host
from nlhf_jax.checkpoints.interop import huggingface, t5x
from nlhf_jax.checkpoints.networks import check_rows, describe_as, shapes
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.data.prompts import PromptForm, form_of
from nlhf_jax.data.templates import rater_segments, reward_segments
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.files import absolute, write_whole
from nlhf_jax.jobs import run_record
from nlhf_jax.models import registry

FORMATS = ("nlhf", "t5x", "t5x_orbax", "huggingface")
KINDS = ("policy", "preference", "reward")
DTYPES = ("float32", "bfloat16")
_LENGTHS = {"policy": ("inputs", "targets"), "preference": ("text", "summary")}
_LENGTHS["reward"] = _LENGTHS["preference"]
_CONTENTS = (  # of a description, all that stays true of a copy
    "kind",
    "model",
    "feature_lengths",
    "rater_template",
    "rater_labels",
    "rater_settings",
    "prompt_form",
    "trained_against",
    "vocabulary",
)


def convert(
    checkpoint: str,
    output: str,
    to: str,
    *,
    dtype: str = "float32",
    vocabulary: str | None = None,
    kind: str = "policy",
    feature_lengths: Mapping[str, int] | None = None,
    prompt_form: str | None = None,
) -> str:
    """Writes a checkpoint in another format; returns a sentence about what was written.

    What `transformers` and T5X load, they load with no code of ours. An optimiser's state is not
    converted.

    Args:
      checkpoint: of any format, see `checkpoints.open_checkpoint`.
      output: a directory. "nlhf" writes `output/checkpoints/STEP`, both of T5X's
        `output/checkpoint_STEP`, with the vocabulary beside it, and "huggingface" into `output`
        itself, which must be new or empty.
      to: one of `FORMATS`.
      dtype: "float32" or "bfloat16", of the parameters in files.
      vocabulary: a SentencePiece model, for checkpoints that hold none.
      kind: to nlhf from a foreign format: what it is, one of `KINDS`.
      feature_lengths: to nlhf from a foreign format: tokens with EOS, "inputs" and "targets" of a
        policy, "text" and "summary" of a rater.
      prompt_form: to nlhf from a foreign format: what stands around a prompt's text
        (`data.prompts.PromptForm.form`).

    Raises:
      UserError: the checkpoint cannot be read, the output is there already, or something is missing
        that the new format must say.
    """
    for name, value, known in (
        ("to", to, FORMATS),
        ("dtype", dtype, DTYPES),
        ("kind", kind, KINDS),
    ):
        if value not in known:
            raise UserError(f"--{name} is {value!r} but is one of {', '.join(known)}")
    found = open_checkpoint(checkpoint)
    vocabulary_bytes = found.vocabulary_bytes
    if vocabulary_bytes is None and vocabulary is not None:
        vocabulary_bytes = Vocabulary.load(vocabulary).model_bytes
    if vocabulary_bytes is not None:
        check_rows(found, Vocabulary.from_bytes(vocabulary_bytes).size)
    model = registry.build(found.model)
    wanted = jax.eval_shape(model.per_layer, shapes(model))
    params = model.per_layer(found.params)
    check_fits(found.path, params, wanted)

    target = epath.Path(output)
    if to == "nlhf":
        description = _description(
            found, vocabulary_bytes, kind, feature_lengths or {}, form_of(prompt_form)
        )
        # What the run had; the arrays are now one for each layer.
        description |= {"model": description["model"] | {"scan_layers": False}}
        # Not beside other steps: a run there would continue from this one, without its optimiser.
        _check_no_run(target)
        target = target / checkpoints.DIRECTORY / str(found.step)
        state = {"params": read_to_host(params, dtype)}
        files = checkpoints.Checkpoints(output, keep=1, asynchronous=False, frugal=True)
        with contextlib.closing(files):
            files.save(found.step, state, description, {})
    elif to == "huggingface":
        with _written_whole(target) as partial:
            huggingface.write(partial, params, model.description(), vocabulary_bytes, dtype)
    else:
        t5x.check_writable(model.description())
        target = target / f"checkpoint_{found.step}"
        _check_new(target)
        with _before(epath.Path(output) / "sentencepiece.model", vocabulary_bytes):
            if to == "t5x":
                with _written_whole(target) as partial:
                    t5x.write_native(partial, params, found.step, dtype)
            else:
                t5x.write_orbax(absolute(output), params, found.step, dtype)
    count = sum(math.prod(array.shape) for array in flattened(params).values())
    return f"{target}: {count:,} parameters of {found.path} ({found.format}) as {to}, {dtype}"


def _description(
    found: StoredCheckpoint,
    vocabulary_bytes: bytes | None,
    kind: str,
    feature_lengths: Mapping[str, int],
    form: PromptForm,
) -> dict:
    if found.description is not None:
        return {name: found.description.get(name) for name in _CONTENTS}
    if vocabulary_bytes is None:
        raise UserError(
            f"the checkpoint {found.path} ({found.format}) holds no vocabulary: name the "
            "SentencePiece model that it was trained with, --vocabulary=FILE"
        )
    missing = [name for name in _LENGTHS[kind] if name not in feature_lengths]
    if missing:
        example = ",".join(f"{name}=64" for name in _LENGTHS[kind])
        raise UserError(
            f"the checkpoint {found.path} ({found.format}) does not say how long its texts may be: "
            f"give {' and '.join(missing)}, for example --feature_lengths={example}"
        )
    words = Vocabulary.from_bytes(vocabulary_bytes)
    return describe_as(
        "supervised" if kind == "policy" else kind,
        registry.build(found.model),
        feature_lengths,
        words,
        rater_segments(words),
        reward_segments(words),
        form.form,
    )


def _check_no_run(workdir: epath.Path) -> None:
    """`_check_new` of its checkpoints. What a conversion left that was killed, Orbax clears away;
    what a training has not saved yet is the training's."""
    is_a_training = (workdir / run_record.FILE_NAME).exists()
    left = None if is_a_training else ".orbax-checkpoint-tmp"
    _check_new(workdir / checkpoints.DIRECTORY, but=left)


def _check_new(path: epath.Path, but: str | None = None) -> None:
    """Raises UserError if something is there, `but` names with that ending do not count."""
    if path.exists() and not (
        path.is_dir() and all(but and inside.name.endswith(but) for inside in path.iterdir())
    ):
        raise UserError(f"{path} is there already: choose another --output, or remove it")


@contextlib.contextmanager
def _before(path: epath.Path, content: bytes | None) -> Iterator[None]:
    """Writes `content`, if any, so that what is written inside never stands there without it."""
    is_new, parent_is_new = not path.exists(), not path.parent.exists()
    if content is not None:
        write_whole(path, content)
    try:
        yield
    except BaseException:
        if content is not None and is_new:
            path.unlink(missing_ok=True)
            if parent_is_new and path.parent.exists() and not any(path.parent.iterdir()):
                path.parent.rmdir()
        raise


@contextlib.contextmanager
def _written_whole(path: epath.Path) -> Iterator[epath.Path]:
    """A directory to write in, which gets its name `path` when all is written."""
    _check_new(path)
    partial = path.parent / f"{path.name}.partial"
    if partial.exists():
        partial.rmtree()
    new_parent = not path.parent.exists()
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        if partial.exists():
            partial.rmtree()
            if new_parent and path.parent.exists():  # a bucket's went with what was in it
                path.parent.rmdir()
