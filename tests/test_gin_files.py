"""The gin files that are shipped: each parses, and builds its shapes without an array."""

import dataclasses
import functools
import importlib.util
import inspect
import math
import re
from pathlib import Path

import gin
import jax
import numpy as np
import pytest
from gin import config as gin_config

from nlhf_jax import configuration, jobs
from nlhf_jax.checkpoints import networks
from nlhf_jax.checkpoints.arrays import Stacked
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.configuration import effective
from nlhf_jax.configuration.checks import missing_arguments
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import builders, chain
from nlhf_jax.jobs import setup as starting
from nlhf_jax.jobs.findings import games
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config

GIN_CONFIGS = Path(__file__).resolve().parents[1] / "gin_configs"
ALL = sorted(path.relative_to(GIN_CONFIGS).as_posix() for path in GIN_CONFIGS.rglob("*.gin"))
T5X = [name for name in ALL if name.startswith("t5x/")]  # they name T5X's modules
OURS = [name for name in ALL if name not in T5X]
JOBS = {
    "jobs.train": jobs.train,
    "jobs.evaluate": jobs.evaluate,
    "jobs.train_vocabulary": jobs.train_vocabulary,
    "jobs.games": games,
    "chain.run": chain.run,
}
# What a file lacks comes from these; they are no jobs themselves.
MODEL, DATA = "models/mini.gin", "tasks/tldr_mini.gin"
JOB = ("runs/sft.gin", MODEL, "runs/nash_md.gin", DATA)  # for parts of one
# Parameters of T5 1.1, as its published checkpoints have them.
SIZES = {
    "small": 76_961_152,
    "base": 247_577_856,
    "large": 783_150_080,
    "xl": 2_849_757_184,
    "xxl": 11_135_332_352,
}
CHIPS = 16  # that tldr/ is for
TRACED = ("tldr/preference.gin", "tldr/nash_md.gin")  # whole steps of these are traced


@functools.cache
def text(name: str) -> str:
    return (GIN_CONFIGS / name).read_text()


@functools.cache
def included(name: str) -> frozenset[str]:
    """What a file includes, and what those include."""
    direct = re.findall(r'^include "(.+)"', text(name), re.MULTILINE)
    return frozenset(direct).union(*(included(other) for other in direct if other in ALL))


@functools.cache
def job_of(name: str) -> str | None:
    """The job that a file configures, alone or with what it includes."""
    content = "".join(text(part) for part in (name, *sorted(included(name))))
    found = [job for job in JOBS if re.search(rf"^{re.escape(job)}\b", content, re.MULTILINE)]
    return found[0] if found else None


# What others include need not be complete: runs/policy.gin has no opponent.
WHOLE = [n for n in OURS if job_of(n) and not any(n in included(other) for other in OURS)]
TRAININGS = [name for name in WHOLE if job_of(name) == "jobs.train"]
CHAINS = [name for name in WHOLE if job_of(name) == "chain.run"]


@pytest.fixture(autouse=True)
def no_configuration_stays():
    yield
    gin.clear_config()


def placeholders(data_dir: Path) -> dict:
    """Values for what files require; settings that no test here knows get one by their type."""
    return {
        "TASK_FEATURE_LENGTHS": {"inputs": 512, "targets": 64, "text": 512, "summary": 64},
        "INITIAL_CHECKPOINT": "policy",
        "RATER_CHECKPOINT": "rater",
        "DATA_DIR": str(data_dir),
        "VOCABULARY": str(TLDR_MINI_MODEL),
        "VOCAB_SIZE": 256,
        "VOCABULARY_FILES": {"sft.jsonl": "sft"},
        "LENGTHS": {"inputs": 512, "targets": 64},
        "RATER_LENGTHS": {"text": 512, "summary": 64},
        "SFT_FILES": {"train": "sft.jsonl"},
        "PREFERENCE_FILES": {"train": "votes.jsonl"},
        "TAU": 0.1,
        "LEARNING_RATE": 1e-3,
        "BATCH_SIZE": 32,
        "POLICIES": {"one": "policy", "other": "policy"},
        "EXPLOITED": {"one": ["training", "tournament"]},
        "JUDGED": {"one": "tournament"},
    }


def parse(files, data_dir: Path, **macros) -> None:
    """`configuration.parse`, with values for all that it says is missing."""
    known = placeholders(data_dir)
    files = list(files)
    given: dict = {}
    tried: dict = {}
    for _ in range(20):
        try:
            return configuration.parse(files, macros=macros | given)
        except UserError as error:
            message = str(error)
        missing = re.findall(r"--gin\.([\w.]+)=\.\.\.", message)
        for macro, file in (("MODEL", MODEL), ("DATA", DATA)):
            if macro in missing and file not in files:
                files.append(file)
                missing.remove(macro)
        given |= {macro: known.get(macro, "text") for macro in missing}
        wrong = re.match(r"(\w+) is .* but must be ", message)
        if wrong and wrong[1] in given.keys() - known.keys():
            others = tried.setdefault(wrong[1], iter((3, 0.1, {"a": "b"}, {"a": 3}, ["a"])))
            given[wrong[1]] = next(others, None)
    raise AssertionError(f"{files} with {macros | given}: {message}")


# --- parsing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_a_file_parses_alone_or_after_a_job(name, tmp_path):
    parse([*([] if job_of(name) else JOB), name], tmp_path)
    if name in WHOLE:
        assert not missing_arguments(JOBS[job_of(name)], {"workdir"})


@pytest.mark.parametrize("name", CHAINS)
def test_the_stages_of_a_chain_parse_with_their_macros(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("votes.jsonl").write_text("{}\n")  # a chain asks how many votes there are
    parse([name], tmp_path)
    arguments = configuration.arguments(chain.run, ["workdir"])
    stages, shared = arguments["stages"], arguments.get("macros", {})
    assert stages[-1]["job"] == "report"
    for stage in stages[:-1]:
        files = stage["gin_file"]
        files = [files] if isinstance(files, str) else files
        macros = stage.get("macros", {})
        configuration.parse(files, macros=macros, macros_if_known=shared)  # without placeholders


@pytest.mark.parametrize("name", [n for n in OURS if n.startswith(("runs/", "tasks/", "judges/"))])
def test_a_default_stands_in_one_place(name):
    """In the gin file. What a notebook calls by itself has it in the code too: the same one."""
    configuration.parse([name], complete=False)
    for setting in effective.settings([name]):
        selector, _, parameter = setting.name.rpartition(".")
        if setting.is_macro or not str(setting.value).startswith("%"):
            continue
        macro = configuration.macro(setting.value.removeprefix("%"))
        signature = inspect.signature(gin_config._REGISTRY.get_match(selector).wrapped).parameters
        default = signature[parameter].default
        if selector.partition(".")[0].endswith("_findings"):
            assert default == macro, setting.name
        else:  # None: it may be left out
            assert default in (inspect.Parameter.empty, None), setting.name


@pytest.mark.parametrize("name", [name for name in OURS if not job_of(name)])
def test_a_part_is_used(name):
    """By a file that includes it, or a chain that names it; models and judges are for users."""
    users = [other for other in OURS if name in included(other) or f'"{name}"' in text(other)]
    assert users or name.startswith(("models/", "judges/"))


def test_tldr_has_all_runs_of_mini():
    mini, real = (
        {Path(name).name for name in OURS if name.startswith(kind)} for kind in ("mini/", "tldr/")
    )
    assert real == mini | {"common.gin"}


@pytest.mark.parametrize("name", T5X)
def test_a_file_for_t5x_is_run_by_t5x_itself(name):
    """Nothing but T5X's own programs can parse it: its run files configure `__main__`."""
    runs = Path(__file__).parent / "checkpoints" / "interop" / "test_live_t5x.py"
    assert Path(name).name in runs.read_text()


# --- shapes --------------------------------------------------------------------------------------


@functools.cache
def shapes_of(config: T5Config):
    return jax.eval_shape(T5(config).init, jax.random.key(0))


@functools.cache
def config_of(model_file: str) -> T5Config:
    parse([*JOB, model_file], Path())
    return configuration.arguments(builders.supervised, ["setup"])["model"]


def parameters(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("size", "published"), SIZES.items())
def test_t5_1_1_has_the_published_number_of_parameters(size, published):
    assert parameters(shapes_of(config_of(f"models/{size}.gin"))) == published


def test_all_sizes_of_t5_1_1_are_tested():
    found = [
        name
        for name in OURS
        if name.startswith("models/") and "models/t5_1_1.gin" in included(name)
    ]
    assert found == sorted(f"models/{size}.gin" for size in SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_t5_1_1_has_the_numbers_of_t5x(size):
    found = importlib.util.find_spec("t5x")
    if found is None:
        pytest.skip("T5X's sources are not on PYTHONPATH")
    directory = Path(found.origin).parent / "examples/t5/t5_1_1"
    theirs = {}
    for name in ("base", size):  # each of its files is after base.gin
        section = (directory / f"{name}.gin").read_text().split("network.T5Config:\n")[1]
        values = re.findall(r"^  (\w+) = ([^%#\n]+)", section, re.MULTILINE)
        theirs |= {key: eval(value) for key, value in values}
    config = config_of(f"models/{size}.gin")
    assert len(theirs) == 10  # of the model's; dropout is the run's
    assert {key: getattr(config, key) for key in theirs} == theirs


@pytest.fixture
def checkpoints_without_arrays(monkeypatch):
    """A checkpoint's name says which model's it is; what is read of it are shapes and places."""

    def open_checkpoint(path: str, what: str = "params") -> StoredCheckpoint:
        size = re.search(r"t5_1_1_(\w+?)(/|$)", path)
        model_file = f"models/{size[1]}.gin" if size else MODEL
        config = dataclasses.replace(configs[model_file], scan_layers=False)
        # As T5X's own: it does not say of what kind it is, nor with which vocabulary.
        return StoredCheckpoint(path, "T5X", shapes_of(config), T5(config).description())

    def place(stored, sharding, dtype):
        def leaf(array, where, dtype):
            return jax.ShapeDtypeStruct(array.shape, dtype, sharding=where)

        is_leaf = lambda x: isinstance(x, Stacked)  # noqa: E731
        return jax.tree.map(leaf, stored, sharding, dtype, is_leaf=is_leaf)

    # Now: inside a job, one configuration must not end another.
    configs = {file: config_of(file) for file in ("models/large.gin", "models/xl.gin", MODEL)}
    for module in (starting, networks):
        monkeypatch.setattr(module, "open_checkpoint", open_checkpoint)
    monkeypatch.setattr(networks, "place", place)


def learner_of(name: str, data_dir: Path, **macros):
    """The learner of a training on a mesh of 2 x 2 x 2, and its batch; nothing is allocated."""
    macros |= {"DATA_AXIS": 2, "FSDP_AXIS": 2, "TENSOR_AXIS": 2}
    if name.startswith("tldr/"):  # the real one is far away
        macros["VOCABULARY"] = placeholders(data_dir)["VOCABULARY"]
    parse([name], data_dir, **macros)
    settings = configuration.arguments(jobs.train, ["workdir"])
    names = ("data", "feature_lengths", "partitioner", "optimizer", "seed")
    setup = builders.Setup(
        **{name: settings[name] for name in names}, microbatches=settings["microbatches"]
    )
    learner = settings["learner"](setup)
    lengths, size = settings["feature_lengths"], settings["batch_size"]
    votes = {"text": "text", "chosen": "summary", "rejected": "summary"}
    features = {
        "supervised": {"inputs": "inputs", "targets": "targets"},
        "policy": {"inputs": "inputs"},
    }.get(learner.kind, votes)
    shapes = {key: ((size, lengths[value]), np.int32) for key, value in features.items()}
    if features is votes:
        shapes["vote_share"] = ((size,), np.float32)
    place = setup.partitioner.sharding
    batch = {
        key: jax.ShapeDtypeStruct(
            shape, dtype, sharding=place(("batch", None)[: len(shape)], shape)
        )
        for key, (shape, dtype) in shapes.items()
    }
    return learner, batch


def check_state(learner) -> None:
    """Shapes fit each other; whatever is large is cut, in the optimiser's state too."""
    state = learner.abstract_state()
    assert jax.tree.structure(state.params) == jax.tree.structure(shapes_of(learner.model.config))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    for leaf in jax.tree.leaves((state.params, state.opt_state, state.kept)):
        if len(leaf.shape) > 1 and min(leaf.shape[-2:]) >= 64:
            assert math.prod(leaf.sharding.shard_shape(leaf.shape)) * 4 == math.prod(leaf.shape)


# Networks of which others are built as well, in half a minute each.
BUILT_LONG = ("tldr/antisymmetric.gin", "tldr/embedding.gin", "tldr/reward.gin")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in BUILT_LONG else ())
        for name in TRAININGS
        if name not in TRACED
    ],
)
def test_a_training_builds_its_state_without_an_array(name, tmp_path, checkpoints_without_arrays):
    before = {id(array) for array in jax.live_arrays()}
    learner, _ = learner_of(name, tmp_path)
    check_state(learner)
    assert not [a for a in jax.live_arrays() if id(a) not in before and a.size > 1000]


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        pytest.param("tldr/preference.gin", ["xl"], marks=pytest.mark.long),
        pytest.param("tldr/nash_md.gin", ["large", "large", "xl"], marks=pytest.mark.slow),
    ],
)
def test_a_step_of_the_published_sizes_can_be_traced(
    name, networks, tmp_path, checkpoints_without_arrays
):
    """Of Nash-MD with all its networks: policy, reference and rater."""
    given = {"INITIAL_CHECKPOINT": "t5_1_1_large", "RATER_CHECKPOINT": "t5_1_1_xl"}
    learner, batch = learner_of(name, tmp_path, **(given if len(networks) > 1 else {}))
    check_state(learner)
    state, frozen = learner.abstract_state(), learner._frozen or {}
    for leaf in jax.tree.leaves(frozen):  # all but what layers compute with in float32
        assert leaf.dtype == "bfloat16" or leaf.ndim < 3 or leaf.shape[-1] == 32128
    after, metrics = jax.eval_shape(learner._jitted_train_step, state, learner._frozen, batch)
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, state, after)
    assert all(jax.tree.leaves(same))
    assert metrics["loss"].shape == () and metrics["loss"].dtype == np.float32
    trees = [state.params, *(frozen[key] for key in ("reference", "scorer") if frozen)]
    assert [parameters(tree) for tree in trees] == [SIZES[size] for size in networks]


@pytest.mark.parametrize("name", [name for name in WHOLE if name.startswith("tldr/")])
def test_a_batch_is_shared_evenly_by_the_chips_of_the_published_runs(name, tmp_path):
    parse([name], tmp_path)
    macro = configuration.macro
    assert CHIPS % (macro("FSDP_AXIS") * macro("TENSOR_AXIS")) == 0 and macro("DATA_AXIS") == -1
    parts = CHIPS // macro("TENSOR_AXIS") * (macro("MICROBATCHES") or 1)
    assert macro("BATCH_SIZE") % parts == 0
