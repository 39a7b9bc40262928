"""Checkpoints: whole or not there, self-describing, and plain about what is wrong with them."""

import contextlib
import dataclasses
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint._src.metadata import checkpoint as orbax_metadata

from nlhf_jax import checkpoints
from nlhf_jax.checkpoints import Checkpoints
from nlhf_jax.checkpoints.arrays import place
from nlhf_jax.checkpoints.description import check_same_vocabulary
from nlhf_jax.checkpoints.opening import open_checkpoint as open_any
from nlhf_jax.errors import UserError
from tests.tiny_learner import State

VOCABULARY = bytes(range(256)) * 20
DESCRIPTION = checkpoints.describe(
    kind="preference",
    model={"vocab_size": 300, "mlp_activations": ["gelu", "linear"]},
    feature_lengths={"text": 12, "summary": 4},
    vocabulary_bytes=VOCABULARY,
    rater_template=[[5, 6], [7], [8]],
    rater_labels=[9, 10],
)


def make_state(scale=1.0, average=False):
    rng = np.random.default_rng(0)
    params = {
        "decoder": {"kernel": jnp.asarray(scale * rng.normal(size=(64, 32)), jnp.float32)},
        "encoder": {"scale": jnp.asarray(scale * rng.normal(size=8), jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = jax.tree.map(lambda x: x + 1, optimizer.init(params))
    return State(
        jnp.int32(7), params, opt_state, jax.tree.map(lambda x: 2 * x, params) if average else None
    )


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save(directory, *steps, state=None, **options):
    """Saves the steps, given as numbers or (number, metrics), and returns when all is on disk."""
    manager = Checkpoints(directory, **({"keep": 3} | options))
    for step in steps:
        step, metrics = step if isinstance(step, tuple) else (step, None)
        manager.save(step, state or make_state(), DESCRIPTION, {"next_batch": step}, metrics)
    manager.close()


def steps_in(directory):
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())


def restore(directory, state):
    manager = Checkpoints(directory, keep=3)
    try:
        return manager.restore_latest(abstract(state))
    finally:
        manager.close()


@pytest.mark.parametrize("average", [False, True])
def test_a_restored_state_has_the_saved_bits_structure_and_places(tmp_path, average):
    state = make_state(average=average)
    save(tmp_path, 7, state=state)
    restored, position = restore(tmp_path, state)
    assert_same(restored, state)
    assert position == {"next_batch": 7}
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, state)


def test_nothing_is_restored_from_a_new_directory(tmp_path):
    assert restore(tmp_path, make_state()) is None


@pytest.mark.parametrize("form", ["stage", "checkpoints", "step"])
def test_load_needs_only_a_path_and_returns_params_and_what_they_are(tmp_path, form):
    state = make_state()
    save(tmp_path, 3, 7, state=state)
    path = {"stage": "", "checkpoints": "checkpoints", "step": "checkpoints/7"}[form]
    loaded = checkpoints.load(tmp_path / path)
    assert_same(loaded.params, jax.tree.map(np.asarray, state.params))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.params))
    assert loaded.vocabulary_bytes == VOCABULARY
    assert loaded.step == 7
    assert loaded.path == str(tmp_path / "checkpoints" / "7")
    assert DESCRIPTION.items() <= loaded.description.items()


def test_params_are_placed_where_they_belong(tmp_path):
    state = make_state()
    save(tmp_path, 7, state=state)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    by_array = {"decoder": {"kernel": cut}, "encoder": {"scale": whole}}
    placed = place(checkpoints.open_checkpoint(tmp_path).params, by_array)
    assert_same(placed, state.params)
    assert jax.tree.map(lambda x: x.sharding, placed) == by_array


def test_the_moving_average_is_loaded_by_name(tmp_path):
    state = make_state(average=True)
    save(tmp_path / "with", 7, state=state)
    loaded = checkpoints.load(f"{tmp_path / 'with'}#average")
    assert_same(loaded.params, jax.tree.map(np.asarray, state.average))
    save(tmp_path / "without", 7)
    with pytest.raises(UserError, match="has no #average: there is only #best"):
        checkpoints.load(f"{tmp_path / 'without'}#average")


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 1)])
def test_the_latest_and_the_best_checkpoint_stay(tmp_path, mode, best):
    scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2, 5: 0.5, 6: 0.4}
    steps = [(step, {"accuracy": score, "loss": 1.0}) for step, score in scores.items()]
    save(tmp_path, *steps, keep=2, best_metric="accuracy", best_mode=mode)
    assert steps_in(tmp_path) == [best, 5, 6]
    assert open_any(f"{tmp_path}#best").step == best
    assert checkpoints.load(f"{tmp_path}#best").step == best
    assert checkpoints.load(tmp_path).step == 6


def test_without_a_metric_only_the_latest_stay(tmp_path):
    save(tmp_path, (1, {"accuracy": 0.9}), (2, {"accuracy": 0.1}), 3, 4, keep=2)
    assert steps_in(tmp_path) == [3, 4]
    with pytest.raises(UserError, match="no best checkpoint"):
        checkpoints.load(f"{tmp_path}#best")


def test_the_best_checkpoint_stays_when_the_run_is_started_again(tmp_path):
    """The process that saves later has not seen how good the earlier one was."""
    for step, accuracy in ((1, 0.9), (2, 0.1), (3, 0.2)):
        save(tmp_path, (step, {"accuracy": accuracy}), keep=1, best_metric="accuracy")
    assert steps_in(tmp_path) == [1, 3]
    assert open_any(f"{tmp_path}#best").step == 1


def test_an_asynchronous_save_is_not_touched_by_the_steps_after_it(tmp_path):
    """On CPU the host's view of an array can share its buffer, which the next step overwrites."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"params": {f"w{i}": jnp.full((512, 512), float(i)) for i in range(12)}}
    expected = jax.tree.map(np.array, state)
    manager = Checkpoints(tmp_path, keep=1)
    manager.save(1, state, DESCRIPTION, {"next_batch": 1})
    for _ in range(20):
        state = step(state)
    manager.close()
    assert_same(checkpoints.load(tmp_path).params, expected["params"])


def test_a_step_is_sealed_after_all_that_orbax_writes_into_it(tmp_path, monkeypatch):
    """Its metadata come from a thread of their own: on a busy machine late."""
    update = orbax_metadata._MetadataStoreImpl.update

    def late(*arguments, **values):
        time.sleep(0.5)
        update(*arguments, **values)

    monkeypatch.setattr(orbax_metadata._MetadataStoreImpl, "update", late)
    state = make_state()
    save(tmp_path, 1, 2, state=state)
    assert "item_handlers" in (tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA").read_text()
    assert_same(restore(tmp_path, state)[0], state)
    assert not (tmp_path / "damaged").exists()


def test_an_unfinished_save_is_ignored_and_cleared_away(tmp_path):
    save(tmp_path, 3)
    directory = tmp_path / "checkpoints"
    partial = directory / "6.orbax-checkpoint-tmp"
    shutil.copytree(directory / "3", partial)
    assert checkpoints.load(tmp_path).step == 3
    assert restore(tmp_path, make_state())[1] == {"next_batch": 3}
    assert not partial.exists()


def test_a_half_deleted_old_step_disturbs_nobody(tmp_path):
    metrics = {"accuracy": 0.5}
    save(tmp_path, (1, metrics), (2, metrics), (3, metrics), best_metric="accuracy")
    old = tmp_path / "checkpoints" / "1"
    shutil.rmtree(old / "description")
    (old / "_CHECKPOINT_METADATA").unlink()
    assert checkpoints.load(f"{tmp_path}#best").step == 3
    save(tmp_path, (4, metrics), keep=2, best_metric="accuracy")
    assert steps_in(tmp_path) == [3, 4]


@pytest.mark.parametrize("gone", ["description", "state", "commit_success.txt", None])
def test_who_continues_a_killed_run_ends_its_deletion_of_old_steps(tmp_path, gone):
    """Also where nothing is left to be saved: a killed run may have had all its steps."""
    save(tmp_path, *((step, {"accuracy": -step}) for step in (1, 2, 3)), best_metric="accuracy")
    if gone == "commit_success.txt":
        (tmp_path / "checkpoints" / "2" / gone).unlink()
    elif gone is not None:
        shutil.rmtree(tmp_path / "checkpoints" / "2" / gone)
    assert steps_in(tmp_path) == [1, 2, 3]
    with contextlib.closing(Checkpoints(tmp_path, keep=1, best_metric="accuracy")) as files:
        files.restore_latest(abstract(make_state()))
    assert steps_in(tmp_path) == [1, 3]  # 1 is the best


def test_where_there_is_no_checkpoint_one_sentence_says_what_is_there(tmp_path):
    with pytest.raises(UserError, match=r"the checkpoint directory .*/nowhere does not exist"):
        checkpoints.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"/empty holds no checkpoint"):
        checkpoints.load(tmp_path / "empty")
    (tmp_path / "unfinished" / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=r"/unfinished holds no checkpoint"):
        checkpoints.load(tmp_path / "unfinished")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes.txt is a file, not a checkpoint"):
        checkpoints.load(tmp_path / "notes.txt")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"/other is not a checkpoint"):
        checkpoints.load(tmp_path / "other")
    save(tmp_path / "chain" / "sft", 7)
    with pytest.raises(UserError, match=r"several stages: give one of .*/chain/sft"):
        checkpoints.load(tmp_path / "chain")


def test_another_models_checkpoint_is_not_restored(tmp_path):
    state = make_state()
    save(tmp_path, 7, state=state)
    params = state.params | {"decoder": {"kernel": jnp.zeros((64, 16))}}
    with pytest.raises(
        UserError, match=r"params/decoder/kernel has shape \(64, 32\) there and \(64, 16\) here"
    ):
        restore(tmp_path, dataclasses.replace(state, params=params))
    with pytest.raises(UserError, match=r"average/\S+ has shape none there"):
        restore(tmp_path, make_state(average=True))


@dataclasses.dataclass
class _Vocabulary:
    model_bytes: bytes


def test_a_vocabulary_must_be_the_checkpoints_own(tmp_path):
    save(tmp_path, 7)
    loaded = checkpoints.load(tmp_path)
    check_same_vocabulary(loaded.path, loaded.vocabulary_bytes, _Vocabulary(VOCABULARY))
    with pytest.raises(
        UserError, match=r"is not the one that the checkpoint .*/7 was trained with"
    ):
        check_same_vocabulary(loaded.path, loaded.vocabulary_bytes, _Vocabulary(VOCABULARY[1:]))


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(UserError, match="best_mode is 'most'"):
        Checkpoints(tmp_path, keep=1, best_mode="most")
    with pytest.raises(UserError, match="keep_checkpoints is 0"):
        Checkpoints(tmp_path, keep=0)
