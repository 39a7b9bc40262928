"""Which names the launchers take, and what is said of the others."""

import argparse
import importlib

import pytest

from launch import common

# As a whole, each could be read as an option, as shell, as another path, or not be seen.
ODD_NAMES = [
    *("", " ", "a b", "a;b", "a&b", "a|b", "a>b", "$(a)", "`a`", "$A", "a'b", 'a"b', "a\\b"),
    *("a\nb", "a\n", "a\tb", "a\0b", "-a", "--a=b", "a*", "a?", "{a}", "(a)", "a#b", "é", "а"),
]
GOOD = {
    "resource": ["my-run", "a", "r2"],
    "jobset": ["my-run", "a" * 39],
    "zone": ["us-central2-b", "asia-northeast1-c"],
    "project": ["my-project", "example.com:my-project"],
    "accelerator": ["v4-8", "v5litepod-16", "v5p-128", "v6e-256"],
    "runtime": ["v2-alpha-tpuv6e", "tpu-ubuntu2204-base", "tpu-vm-tf-2.17.1-pod-pjrt"],
    "account": ["nlhf@my-project.iam.gserviceaccount.com"],
    "network": ["default", "projects/host/regions/us-central2/subnetworks/tpu"],
    "duration": ["6h", "30m"],
    "repository": ["https://github.com/me/nlhf_jax.git", "ssh://git@github.com/me/nlhf_jax"],
    "revision": ["3f2c1ab", "v0.2.0", "release/0.2"],
    "python": ["python3.11"],
    "image": ["train", "us-docker.pkg.dev/p/nlhf/train:1", "gcr.io/p/i@sha256:" + 64 * "a"],
    "namespace": ["default", "team-1"],
    "tpu": ["tpu-v5p-slice", "tpu7x"],
    "topology": ["1x1", "4x4", "4x4x8", "12x16x28"],
    "slurm": ["gpu", "a100_80", "a,b", "64G"],
    "slurm time": ["90", "24:00:00", "3-12:00:00"],
    "file": ["%x-%j.log", "/scratch/me/log", "../log"],
    "module": ["nlhf_jax.main", "mine"],
    "directory": ["out/run", "/tmp/with space", "gs://bucket/a/b", "gs://bucket"],
    "environment": ["A=", "LIBTPU_INIT_ARGS=--xla_a=true --xla_b=$X"],
}
# What is odd for a name is an honest path, if it can be seen and is no option.
PATHS = [text for text in ODD_NAMES if text.isprintable() and text and text[0] != "-"]


def test_there_are_examples_of_all_kinds():
    assert GOOD.keys() == common.NAMES.keys()


@pytest.mark.parametrize("kind", GOOD)
def test_good_names_are_taken_and_odd_ones_are_not(kind):
    check = common.name(kind)
    for text in GOOD[kind]:
        assert check(text) == text
    for text in ODD_NAMES:
        if kind == "directory" and text in PATHS:
            continue
        with pytest.raises(argparse.ArgumentTypeError) as raised:
            check(text)
        assert str(raised.value).startswith(f"{text!r} must be ")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("resource", "My-Run"),
        ("resource", "a" * 61),
        ("jobset", "a" * 40),
        ("jobset", "a-"),
        ("zone", "us-central2"),
        ("accelerator", "v5p"),
        ("revision", "../main"),
        ("revision", "a..b"),
        ("repository", "file:///etc"),
        ("repository", "ext::sh"),
        ("repository", "https://-oProxyCommand=x"),
        ("python", "python3"),
        ("image", "image@sha256:0"),
        ("topology", "4x0"),
        ("topology", "4"),
        ("directory", "gs://"),
        ("directory", "gs:/bucket"),
        ("directory", "s3://bucket"),
        ("directory", "gs://bucket/a b"),
        ("environment", "=1"),
        ("environment", "A B=1"),
        ("environment", "A=1\nB=2"),
    ],
)
def test_what_is_no_such_name_is_refused(kind, bad):
    with pytest.raises(argparse.ArgumentTypeError, match="must be"):
        common.name(kind)(bad)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--"], "after -- stands nothing, where a job of nlhf is wanted"),
        (["--", "--workdir=x"], "after -- stands '--workdir=x', where a job"),
        (["--", "train;ls"], "after -- stands 'train;ls', where a job"),
        (["--", "train", "--gin.A=a\nb"], r"'--gin.A=a\\nb' has characters that cannot be printed"),
    ],
)
def test_a_command_that_is_none_is_refused(arguments, said):
    with pytest.raises(common.Refused, match=said):
        common.job_of(arguments)


def test_the_command_is_what_stands_after_the_first_dashes():
    arguments = ["--a=1", "--", "train", "--b", "--", ""]
    assert common.job_of(arguments) == (["--a=1"], ["train", "--b", "--", ""])
    assert common.job_of(["--a"]) == (["--a"], [])


TPU_VM = {
    "zone": "us-central2-b",
    "project": "my-project",
    "accelerator": "v5p-8",
    "runtime": "v2-alpha-tpuv5",
    "repository": "https://github.com/me/nlhf_jax",
    "revision": "3f2c1ab",
}
# Launcher -> its positional arguments, what it needs, and its other options that are names.
NAMED = {
    "local": ([], {"processes": "2"}, ["module"]),
    "tpu_vm": (
        ["run", "my-run"],
        TPU_VM,
        ["service_account", "network", "subnetwork", "valid_until_duration", "python", "env"],
    ),
    "gke": (
        ["my-run"],
        {"accelerator": "tpu-v5p-slice", "topology": "2x2x2", "image": "i"},
        ["namespace", "service_account", "queue", "env", "cluster", "project", "zone"],
    ),
    "slurm": (
        [],
        {"gpus_per_node": "8", "time": "60"},
        ["job_name", "partition", "account", "qos", "constraint", "mem", "log", "python", "env"],
    ),
    "evaluate_beside": ([], {"watch": "out/a", "out": "out/b"}, ["module"]),
}


def cases():
    for launcher, (positional, needed, more) in NAMED.items():
        for option in [*needed, *more]:
            yield launcher, option
        for place in range(len(positional)):
            yield launcher, place


@pytest.mark.parametrize(("launcher", "option"), list(cases()))
def test_every_name_of_every_launcher_is_checked(launcher, option):
    """A value with a line's end goes nowhere: not even a path may have one."""
    positional, needed, _ = NAMED[launcher]
    positional, needed = list(positional), dict(needed)
    if isinstance(option, int):
        positional[option] = "x\n;reboot"
    else:
        needed[option] = "x\n;reboot"
    arguments = [*positional, *(f"--{key}={value}" for key, value in needed.items())]
    program = importlib.import_module(f"launch.{launcher}")
    with pytest.raises(common.Refused) as raised:
        program.main([*arguments, "--dry_run", "--", "train", "{checkpoint}"])
    assert r"x\n;reboot" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("launcher", NAMED)
def test_what_a_launcher_needs_is_asked_for(launcher):
    program = importlib.import_module(f"launch.{launcher}")
    positional, needed, _ = NAMED[launcher]
    for missing in needed:
        given = [f"--{key}={value}" for key, value in needed.items() if key != missing]
        with pytest.raises(common.Refused, match=f"--{missing}"):
            program.main([*positional, *given, "--dry_run", "--", "train", "{checkpoint}"])
    given = [f"--{key}={value}" for key, value in needed.items()]
    with pytest.raises(common.Refused, match="the nlhf command is missing"):
        program.main([*positional, *given, "--dry_run"])


def test_a_program_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(common.Refused, match="the program gcloud is not installed here"):
        common.run(["gcloud", "version"])
