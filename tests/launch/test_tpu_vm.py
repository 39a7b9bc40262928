"""Queued resources and what runs on them, with a gcloud that keeps them on this machine."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import remote, tpu_vm
from tests.launch import cloud as clouds
from tests.launch.programs import ODD, launch, start

NEEDED = [
    *("my-run", "--zone=us-central2-b", "--project=my-project"),
    *("--poll=0", "--grace=5"),
]
RUN = [
    *("run", *NEEDED, "--accelerator=v5p-16", "--runtime=v2-alpha-tpuv5"),
    *("--repository=https://github.com/me/nlhf_jax", f"--revision={clouds.REVISION}"),
]
# In the place of nlhf. It keeps its steps in the bucket, so that it continues.
WORKER = r"""
import json, os, pathlib, signal, subprocess, sys, time
bucket = pathlib.Path(os.environ["CLOUD"]) / "bucket"
me = pathlib.Path.home().name
assert sys.argv[1:3] == ["-m", "nlhf_jax.main"], sys.argv
job, *options = sys.argv[3:]
(bucket / f"arguments.{me}").write_text(json.dumps([job, *options, os.environ.get("A")]))
def saves(number, frame):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, saves)
done = bucket / f"steps.{me}"
preempted = bucket / "preempted"
for step in range(len(done.read_text()) if done.exists() else 0, 4):
    print(f"worker {me}, step {step}", flush=True)
    with done.open("a") as file:
        file.write(".")
    if "--preempted" in options and step == 1 and not preempted.exists():
        if me == "0":
            preempted.touch()
            cloud = [sys.executable, "-m", "tests.launch.cloud", "preempt"]
            subprocess.Popen(cloud, start_new_session=True)
        time.sleep(60)
if "--shut_down" in options and not (bucket / f"down.{me}").exists():
    (bucket / f"down.{me}").touch()
    os.kill(os.getpid(), signal.SIGTERM)
for option in options:
    who, _, code = option.removeprefix("--end=").partition(":")
    if option.startswith("--end=") and who == me:
        sys.exit(int(code))
    if option.startswith("--end="):
        time.sleep(60)
while "--wait" in options and not (bucket / "go").exists():
    time.sleep(0.05)
"""


@pytest.fixture
def cloud_of(tmp_path):
    made = []

    def make(**settings):
        cloud, variables = clouds.make(tmp_path, WORKER, **settings)
        made.append(cloud)
        return cloud, variables

    yield make
    for cloud in made:
        cloud.power_off()


def verbs(cloud) -> list[str]:
    return [call[3] for call in cloud.calls("create", "delete")]


def steps(who: int = 0, numbers=range(4)) -> list[str]:
    return [f"worker {who}, step {number}" for number in numbers]


def test_a_run_waits_for_its_tpus_and_starts_the_same_command_on_all_workers(cloud_of):
    cloud, variables = cloud_of()
    done = launch("tpu_vm.py", *RUN, "--spot", "--env=A=b  'c'", "--", "train", *ODD, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == steps()
    for worker in range(clouds.WORKERS):
        got = json.loads((cloud.bucket / f"arguments.{worker}").read_text())
        assert got == ["train", *ODD, "b  'c'"]
    for state in ("not there", *clouds.QUEUED[:-1]):
        assert f"my-run is {state}\n" in done.stderr
    (create,) = cloud.calls("create", "delete")
    assert "--spot" in create


def test_a_resource_that_is_there_is_used_and_deleted_at_the_end_if_asked(cloud_of):
    cloud, variables = cloud_of(states=["ACTIVE"], plans=[])
    assert launch("tpu_vm.py", *RUN, "--", "train", **variables).returncode == 0
    assert verbs(cloud) == []
    done = launch("tpu_vm.py", *RUN, "--delete_after", "--", "train", **variables)
    assert (done.returncode, done.stdout) == (0, "")  # All steps were done.
    assert verbs(cloud) == ["delete"]
    assert not any(home.exists() for home in cloud.homes())


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_what_is_left_of_a_resource_is_deleted_and_asked_for_again(cloud_of, state):
    cloud, variables = cloud_of(states=[state])
    done = launch("tpu_vm.py", *RUN, "--", "train", **variables)
    assert (done.returncode, done.stdout.splitlines()) == (0, steps())
    assert verbs(cloud) == ["delete", "create"]


def test_after_preemption_the_run_continues_on_other_tpus(cloud_of):
    cloud, variables = cloud_of(plans=[clouds.QUEUED] * 2)
    done = launch("tpu_vm.py", *RUN, "--max_restarts=0", "--", "train", "--preempted", **variables)
    assert done.returncode == 0, done.stderr
    # What the first machine had not shown yet went away with it.
    assert done.stdout.splitlines()[-2:] == steps(numbers=(2, 3))
    assert set(done.stdout.splitlines()) <= set(steps())
    assert "the TPUs were taken away; asks for others" in done.stderr
    assert verbs(cloud) == ["create", "delete", "create"]
    assert [(cloud.bucket / f"steps.{who}").read_text() for who in (0, 1)] == ["...."] * 2


def test_a_request_that_fails_ends_in_a_sentence(cloud_of):
    cloud, variables = cloud_of(plans=[["WAITING_FOR_RESOURCES", "FAILED"]])
    done = launch("tpu_vm.py", *RUN, "--", "train", **variables)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("tpu_vm.py: error: the request for my-run failed; `gcloud compute")
    assert verbs(cloud) == ["create"]


@pytest.mark.parametrize("code", [2, 3])
def test_what_would_fail_again_is_not_started_again(cloud_of, code):
    cloud, variables = cloud_of(states=["ACTIVE"])
    done = launch("tpu_vm.py", *RUN, "--", "train", f"--end=1:{code}", **variables)
    assert done.returncode == code
    assert "starts it again" not in done.stderr


def test_a_worker_that_fails_takes_the_others_with_it_and_all_start_again(cloud_of):
    cloud, variables = cloud_of(states=["ACTIVE"])
    done = launch("tpu_vm.py", *RUN, "--max_restarts=1", "--", "train", "--end=0:7", **variables)
    assert done.returncode == 7
    lines = [line for line in done.stderr.splitlines() if "ended with" in line]
    assert lines == [
        "tpu_vm.py: ended with 7; starts it again, 1 of 1",
        "tpu_vm.py: ended with 7, after 1 restarts",
    ]
    assert (cloud.homes()[1] / "nlhf_launch" / "log").read_text() == "saved\n"


def test_a_machine_that_is_shut_down_is_no_failure_of_the_command(cloud_of):
    cloud, variables = cloud_of(states=["ACTIVE"])
    done = launch("tpu_vm.py", *RUN, "--max_restarts=0", "--", "train", "--shut_down", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*steps(), "saved"]
    assert done.stderr.splitlines()[-1].endswith("starts the command again")


def running(variables, *job: str) -> subprocess.Popen:
    """A run whose first line is there."""
    launcher = start("tpu_vm.py", *RUN, "--", *job, **variables)
    for line in launcher.stdout:
        if line == steps()[0] + "\n":
            return launcher
    raise AssertionError("it ended")


def test_a_run_that_is_stopped_saves_and_is_not_started_again(cloud_of):
    cloud, variables = cloud_of(states=["ACTIVE"])
    launcher = running(variables, "train", "--wait")
    assert launch("tpu_vm.py", "stop", *NEEDED, **variables).returncode == 0
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 143
    assert "saved" in output and "starts it again" not in output


def test_without_the_launcher_the_run_goes_on_and_the_same_command_follows_it(cloud_of):
    cloud, variables = cloud_of(states=["ACTIVE"])
    launcher = running(variables, "train", "--wait")
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 143
    assert "the run goes on, and the same command follows it again" in output
    other = launch("tpu_vm.py", *RUN, "--", "train", "--wait", "--else", **variables)
    assert other.returncode == 1
    assert "another command runs on" in other.stderr
    assert "a worker of my-run cannot do it" in other.stderr.splitlines()[-1]
    launcher = running(variables, "train", "--wait")
    (cloud.bucket / "go").touch()
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output
    for worker in range(clouds.WORKERS):
        assert (cloud.bucket / f"steps.{worker}").read_text() == "...."
        assert not (cloud.homes()[worker] / "nlhf_launch" / "log.before").exists()  # one start
    logs = launch("tpu_vm.py", "logs", *NEEDED, **variables)
    assert (logs.returncode, logs.stdout.splitlines()) == (0, steps())
    assert launch("tpu_vm.py", "delete", *NEEDED, **variables).returncode == 0
    assert verbs(cloud) == ["delete"]


def test_a_resource_that_somebody_deletes_is_not_asked_for_again(cloud_of):
    cloud, variables = cloud_of(states=["ACTIVE"])
    launcher = running(variables, "train", "--wait")
    assert launch("tpu_vm.py", "delete", *NEEDED, **variables).returncode == 0
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 1
    assert "my-run was deleted by somebody" in output
    assert verbs(cloud) == ["delete"]


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([0, 0], 0),
        ([0, 2, 134], 2),
        ([134, 143, 3], 3),
        ([143, 134], 134),
        ([143, 143], 143),
        ([143, 0], 143),
        ([remote.STOPPED, 134], remote.STOPPED),
        ([remote.STOPPED, 2], 2),
    ],
)
def test_the_run_ended_as_the_worker_did_that_failed_first(codes, said):
    assert tpu_vm.verdict(codes) == said


@pytest.mark.parametrize("action", ["run", "logs", "stop", "delete"])
def test_a_dry_run_prints_what_a_shell_reads_back_and_calls_nothing(cloud_of, action):
    cloud, variables = cloud_of()
    if action == "run":
        done = launch("tpu_vm.py", *RUN, "--dry_run", "--", "train", *ODD, **variables)
    else:
        done = launch("tpu_vm.py", action, *NEEDED, "--dry_run", **variables)
    assert done.returncode == 0
    assert cloud.calls() == []
    commands = shlex.split(done.stdout, comments=True)
    if action == "run":
        command = remote.command(clouds.REVISION, [], ["train", *ODD])
        wanted = ["describe", "create", "ssh", "ssh", "ssh", "ssh", "delete"]
        assert f"--command={remote.start(command)}" in commands
    else:
        wanted = [{"logs": "ssh", "stop": "ssh", "delete": "delete"}[action]]
    places = [place for place, word in enumerate(commands) if word == "gcloud"]
    assert [commands[place + 4] for place in places] == wanted


def test_several_slices_are_one_resource_and_all_their_workers_are_reached():
    options = tpu_vm._parser().parse_args([*RUN, "--slices=3"])
    resource = tpu_vm._resource(options)
    create, every, first = (
        resource.create_command(),
        resource.ssh_command("true"),
        resource.ssh_command("true", worker="0"),
    )
    assert {"--node-count=3", "--node-prefix=my-run"} < set(create)
    assert every[3:5] == first[3:5] == ["queued-resources", "ssh"]
    assert {"--node=all", "--worker=all"} < set(every)
    assert {"--node=0", "--worker=0"} < set(first)


# --- the installation ----------------------------------------------------------------------------

# Builds a wheel with no package but Python's own, so that pip needs no network.
BACKEND = """
import zipfile
METADATA = '''Metadata-Version: 2.1
Name: nlhf_jax
Version: 1
Provides-Extra: tpu
Provides-Extra: gcs
'''
WHEEL = '''Wheel-Version: 1.0
Root-Is-Purelib: true
Tag: py3-none-any
'''
def build_wheel(directory, settings=None, metadata=None):
    name = "nlhf_jax-1-py3-none-any.whl"
    with zipfile.ZipFile(directory + "/" + name, "w") as wheel:
        wheel.write("main.py", "nlhf_jax/main.py")
        wheel.writestr("nlhf_jax-1.dist-info/METADATA", METADATA)
        wheel.writestr("nlhf_jax-1.dist-info/WHEEL", WHEEL)
        wheel.writestr("nlhf_jax-1.dist-info/RECORD", "")
    return name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def repository(directory: Path) -> tuple[str, str]:
    """A repository with a package whose main prints its version; its two commits."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
        command = ["git", *who, "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    directory.mkdir()
    git("init", "--quiet")
    commits = []
    for version in (1, 2):
        (directory / "main.py").write_text(f"import sys\nprint({version}, sys.argv[1:])\n")
        (directory / "backend.py").write_text(BACKEND)
        (directory / "pyproject.toml").write_text(PYPROJECT)
        (directory / "requirements.lock").write_text("")
        git("add", ".")
        git("commit", "--quiet", "--message=version")
        commits.append(git("rev-parse", "--short", "HEAD"))
    return commits[0], commits[1]


def on_worker(home: Path, command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HOME": str(home), "PIP_NO_INDEX": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow  # makes a virtual environment, as a worker does
def test_the_package_is_installed_at_the_revision_once_and_what_fails_is_not_taken_for_it(tmp_path):
    old, _ = repository(tmp_path / "repository")
    home = tmp_path / "home"
    home.mkdir()
    missing = remote.install(str(tmp_path / "repository"), "0000000", sys.executable)
    failed = on_worker(home, missing)
    assert failed.returncode == remote.REFUSED and "0000000" in failed.stderr
    install = remote.install(str(tmp_path / "repository"), old, sys.executable)
    done = on_worker(home, install)
    assert done.returncode == 0, done.stderr
    started = on_worker(home, remote.start(remote.command(old, [], ["train", *ODD])))
    assert started.returncode == 0, started.stderr
    log = on_worker(home, remote.follow(1))
    assert log.stdout == f"1 {['train', *ODD]!r}\n"
    report = on_worker(home, remote.report())
    assert report.stdout.split()[0::2] == ["nlhf-worker", "0"]
    installed = home / "nlhf_launch" / old / "installed"
    before = installed.stat().st_mtime_ns
    assert on_worker(home, install).returncode == 0
    assert installed.stat().st_mtime_ns == before
