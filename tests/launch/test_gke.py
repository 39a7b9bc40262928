"""JobSets: what Kubernetes reads in the manifest is what was asked for."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from launch import gke
from launch.common import Refused
from tests.launch.programs import ODD, install, launch

SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
NEEDED = ["my-run", "--accelerator=tpu-v5p-slice", "--topology=4x4x8", "--image=gcr.io/p/nlhf:1"]
ALL = [
    *("--slices=2", "--namespace=team", "--queue=tpu", "--service_account=trainer", "--spot"),
    *("--host_network", "--max_restarts=7", "--grace_seconds=90", "--env=A=b c=$(d)", "--env=E="),
]


def manifest(arguments, job=("train",)) -> dict:
    """What `yaml` writes, as another reader of YAML reads it."""
    text = gke.yaml(gke.jobset(gke._parser().parse_args(arguments), job))
    return yaml.safe_load(text)


def pod(found: dict) -> dict:
    (replicated,) = found["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]["template"]["spec"]


def expanded(text: str, variables: dict[str, str]) -> str:
    """As Kubernetes reads a container's command: $$ is $, $(NAME) a variable if there is one."""

    def one(match: re.Match) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


@pytest.mark.parametrize("arguments", [NEEDED, [*NEEDED, *ALL]])
def test_the_manifest_is_valid_and_another_reader_reads_the_same(arguments):
    options = gke._parser().parse_args(arguments)
    found = manifest(arguments, ["train", *ODD])
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert found == gke.jobset(options, ["train", *ODD])


@pytest.mark.parametrize(
    "text",
    [
        *("yes", "NO", "null", "~", "1", "1.0", "0x1", "1e3", "4x4", "2024-01-01", "a: b", "#a"),
        *("'a'", '"', "\\", "- a", "a #b", "{a", "[a", "*a", "&a", "!a", "%a", "@a", " a ", ""),
        *("ü 選 🙂", "true", "a\n b"),
    ],
)
def test_strings_stay_strings(text):
    value = {"a": text, "b": [text, {"c": [text], "d": {}}, []], "e": [{"f": text, "g": 1}]}
    assert yaml.safe_load(gke.yaml(value)) == value


def test_a_container_gets_the_arguments_unchanged():
    (container,) = pod(manifest([*NEEDED, *ALL], ["train", *ODD]))["containers"]
    variables = {"A": "wrong", "d": "wrong", "(echo no": "wrong", "echo no": "wrong"}
    read = [expanded(part, variables) for part in container["command"]]
    assert read == ["python", "-m", "nlhf_jax.main", "train", *ODD]
    environment = {pair["name"]: expanded(pair["value"], variables) for pair in container["env"]}
    assert environment == {"A": "b c=$(d)", "E": ""}


@pytest.mark.parametrize(
    ("topology", "chips_per_node", "nodes"),
    [("1x1", 1, 1), ("2x2", 4, 1), ("2x4", 8, 1), ("4x4", 4, 4), ("4x4x8", 4, 32)],
)
def test_there_is_a_pod_for_every_host_of_every_slice(topology, chips_per_node, nodes):
    options = [f"--topology={topology}", f"--chips_per_node={chips_per_node}", "--slices=3"]
    found = manifest([*NEEDED, *options])
    (replicated,) = found["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 3
    assert job["parallelism"] == job["completions"] == nodes
    (container,) = pod(found)["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": chips_per_node}}
    selector = pod(found)["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-topology"] == topology


def test_chips_that_fill_no_nodes_are_refused():
    with pytest.raises(Refused, match="4x4x8 has 128 chips, which are no whole number of nodes"):
        manifest([*NEEDED, "--chips_per_node=3"])


def test_what_is_not_worth_another_start_ends_the_jobset_and_the_rest_does_not():
    found = manifest([*NEEDED, "--max_restarts=7"])
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = pod(found)["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [2, 3]  # `nlhf_jax.main`: bad input, diverged
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert [rule["action"] for rule in policy["rules"]] == ["FailJobSet"]
    # Kubernetes takes a pod failure policy for pods that are never restarted in place only.
    assert pod(found)["restartPolicy"] == "Never" and job["backoffLimit"] == 0


def test_kubectl_gets_the_manifest_that_print_prints(tmp_path):
    got = tmp_path / "got"
    path = install(
        tmp_path / "bin", "kubectl", f'#!/bin/sh\necho "$@" >"{got}"\ncat >>"{got}"\nexit 5\n'
    )
    job = ["--", "train", *ODD]
    printed = launch("gke.py", *NEEDED, *ALL, "--print", *job)
    assert printed.returncode == 0
    assert launch("gke.py", *NEEDED, *ALL, *job, PATH=path).returncode == 5
    assert got.read_text() == "apply --filename=-\n" + printed.stdout
    got.unlink()
    shown = launch("gke.py", *NEEDED, *ALL, "--dry_run", *job, PATH=path)
    assert shown.stdout.splitlines()[0] == "kubectl apply --filename=-  # reads this manifest:"
    assert shown.stdout.partition("\n")[2] == printed.stdout
    assert not got.exists()


def test_xpk_gets_a_command_that_bash_reads_back():
    options = gke._parser().parse_args([*NEEDED, *ALL, "--cluster=c", "--zone=us-east5-a"])
    (*flags, last) = gke.xpk(options, ["train", *ODD])
    assert flags[:3] == ["xpk", "workload", "create"]
    assert "--tpu-type=v5p-4x4x8" in flags and "--num-slices=2" in flags
    assert "--zone=us-east5-a" in flags and "--env=A=b c=$(d)" in flags
    script = last.removeprefix("--command=").replace("python -m nlhf_jax.main", "printf '%s\\0'")
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.split("\0")[:-1] == ["train", *ODD]


def test_xpk_is_printed_as_one_line():
    done = launch("gke.py", *NEEDED, "--cluster=c", "--print_xpk", "--", "train", "--workdir=a b")
    assert shlex.split(done.stdout)[-1] == (
        "--command=python -m nlhf_jax.main train '--workdir=a b'"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--cluster=c", "--accelerator=tpu-v9"], "XPK's name of tpu-v9 is not known here"),
        ([], "--print_xpk needs --cluster"),
    ],
)
def test_what_xpk_has_no_name_for_is_refused(more, said):
    with pytest.raises(Refused, match=said):
        gke.main([*NEEDED, *more, "--print_xpk", "--", "train"])
