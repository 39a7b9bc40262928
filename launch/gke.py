"""Runs an `nlhf` command on TPU slices of a GKE cluster, as a JobSet.

    python launch/gke.py my-run --accelerator=tpu-v5p-slice --topology=4x4x8 --slices=2 \\
        --image=us-docker.pkg.dev/my-project/nlhf/train:1 --service_account=nlhf -- \\
        train --gin_file=tldr/nash_md.gin --workdir=gs://bucket/run/nash_md

hands the manifest to `kubectl apply`; --print writes it to stdout instead. One pod runs on every
host of every slice, and nlhf finds the others by what GKE puts into the pods of a JobSet. A pod
that is evicted gets SIGTERM and --grace_seconds to save; then all start again, --max_restarts times
at most, and the same command continues. Exit code 2 (bad settings) and 3 (the training diverged)
end the JobSet at once: another start would end in the same way.

The image has nlhf_jax installed (`pip install ".[tpu,gcs]"`). `kubectl logs --follow
job/NAME-slice-0` shows the run; `kubectl delete jobset NAME` ends it.

--print_xpk prints the command with which XPK starts the same on a cluster that XPK made; it needs
--cluster.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launch.common import (
    NLHF,
    Parser,
    Refused,
    at_least,
    exit_with,
    job_of,
    name,
    required,
    run,
    shown,
)

_SLICE = "slice"  # the replicated job: NAME-slice-0, NAME-slice-1, ...
_CONTAINER = "nlhf"
_NEVER_AGAIN = [2, 3]  # nlhf's exit codes for bad input, and for a training that diverged
# GKE's name of an accelerator -> what XPK calls it, before the topology.
_XPK = {
    "tpu-v4-podslice": "v4",
    "tpu-v5-lite-podslice": "v5litepod",
    "tpu-v5p-slice": "v5p",
    "tpu-v6e-slice": "v6e",
    "tpu7x": "tpu7x",
}


def nodes_per_slice(topology: str, chips_per_node: int) -> int:
    """Hosts of a slice: its chips are the product of the topology's sides."""
    chips = math.prod(int(side) for side in topology.split("x"))
    if chips % chips_per_node:
        raise Refused(
            f"--topology={topology} has {chips} chips, which are no whole number of nodes with "
            f"--chips_per_node={chips_per_node}"
        )
    return chips // chips_per_node


def jobset(options: argparse.Namespace, job: Sequence[str]) -> dict[str, Any]:
    """The JobSet; `options` have been checked by the parser."""
    nodes = nodes_per_slice(options.topology, options.chips_per_node)
    metadata: dict[str, Any] = {
        "name": options.name,
        "namespace": options.namespace,
        # The pods of a slice go to one node pool, and those of another slice to another one.
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    if options.queue is not None:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    slice_job = {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # A pod that fails fails its slice: all have to start again together.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": _NEVER_AGAIN,
                    },
                }
            ]
        },
        "template": {"spec": _pod(options, job)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # The headless service by which the pods find each other.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": options.max_restarts,
                "rules": [
                    {
                        "name": "neverAgain",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": _SLICE, "replicas": options.slices, "template": {"spec": slice_job}}
            ],
        },
    }


def _pod(options: argparse.Namespace, job: Sequence[str]) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": options.accelerator,
        "cloud.google.com/gke-tpu-topology": options.topology,
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace_seconds,
        "nodeSelector": selector,
        "containers": [
            {
                "name": _CONTAINER,
                "image": options.image,
                # Without a shell, so that SIGTERM reaches nlhf itself.
                "command": [_literal(part) for part in ["python", "-m", NLHF, *job]],
                "env": [
                    {"name": key, "value": _literal(value)}
                    for key, _, value in (pair.partition("=") for pair in options.env)
                ],
                "resources": {"limits": {"google.com/tpu": options.chips_per_node}},
            }
        ],
    }
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        ]
    if options.service_account is not None:
        pod["serviceAccountName"] = options.service_account
    if options.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return pod


def _literal(text: str) -> str:
    """As Kubernetes passes it on unchanged: it reads `$(NAME)` as a variable, `$$` as `$`."""
    return text.replace("$", "$$")


def yaml(value: Any, indent: str = "") -> str:
    """A manifest as YAML: nested dicts and lists in block style, strings as in JSON."""
    if isinstance(value, Mapping) and value:
        parts = [(f"{indent}{key}:", child) for key, child in value.items()]
    elif isinstance(value, list) and value:
        parts = [(f"{indent}-", child) for child in value]
    else:
        return f" {_scalar(value)}\n"
    lines = []
    for head, child in parts:
        nested = yaml(child, indent + "  ")
        if head.endswith("-") and isinstance(child, Mapping) and child:
            lines.append(f"{head} {nested.lstrip()}")  # the first key stands beside the dash
        elif isinstance(child, Mapping | list) and child:
            lines.append(f"{head}\n{nested}")
        else:
            lines.append(head + nested)
    return "".join(lines)


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch("[A-Za-z][A-Za-z0-9./_-]*", value, re.ASCII)
    if plain and value.lower() not in ("true", "false", "yes", "no", "on", "off", "null", "y", "n"):
        return value
    return json.dumps(value, ensure_ascii=False)


def xpk(options: argparse.Namespace, job: Sequence[str]) -> list[str]:
    """The XPK command that starts the same; XPK hands `--command` to bash."""
    if options.accelerator not in _XPK:
        known = ", ".join(_XPK)
        raise Refused(f"XPK's name of {options.accelerator} is not known here; there are {known}")
    if options.cluster is None:
        raise Refused("--print_xpk needs --cluster, the name of a cluster that XPK made")
    command = ["xpk", "workload", "create", f"--workload={options.name}"]
    command.append(f"--cluster={options.cluster}")
    command += [f"--project={options.project}"] if options.project is not None else []
    command += [f"--zone={options.zone}"] if options.zone is not None else []
    return [
        *command,
        f"--tpu-type={_XPK[options.accelerator]}-{options.topology}",
        f"--num-slices={options.slices}",
        f"--docker-image={options.image}",
        f"--max-restarts={options.max_restarts}",
        f"--termination-grace-period-seconds={options.grace_seconds}",
        *(f"--env={pair}" for pair in options.env),
        f"--command={shown(['python', '-m', NLHF, *job])}",
    ]


def _parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("name", type=name("jobset"), metavar="NAME", help="of the JobSet")
    add("--namespace", type=name("namespace"), default="default", help="(default)")
    add("--image", type=name("image"), required=True, help="with nlhf_jax installed")
    add("--accelerator", type=name("tpu"), required=True, help="such as tpu-v5p-slice")
    add("--topology", type=name("topology"), required=True, help="of a slice, such as 4x4x8")
    add("--slices", type=at_least(1), default=1, metavar="N", help="(1)")
    add("--chips_per_node", type=at_least(1), default=4, metavar="N", help="of its machine (4)")
    add("--max_restarts", type=at_least(0), default=50, metavar="N", help="(50)")
    add("--grace_seconds", type=at_least(1), default=120, metavar="N", help="to save in (120)")
    add("--service_account", type=name("namespace"), help="of Kubernetes, which may use the bucket")
    add("--queue", type=name("namespace"), help="Kueue's local queue")
    add("--spot", action="store_true", help="on spot nodes")
    add("--host_network", action="store_true", help="the nodes' own network, as XPK has it")
    add("--env", type=name("environment"), action="append", default=[], metavar="NAME=VALUE")
    add("--print", action="store_true", help="print the manifest, and do not apply it")
    add("--print_xpk", action="store_true", help="print XPK's command for the same")
    add("--cluster", type=name("jobset"), help="for --print_xpk")
    add("--project", type=name("project"), help="for --print_xpk")
    add("--zone", type=name("zone"), help="for --print_xpk")
    parser.add_dry_run()
    return parser


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    own, job = job_of(arguments)
    options = _parser().parse_args(own)
    if options.print_xpk:
        print(shown(xpk(options, required(job))))
        return 0
    manifest = yaml(jobset(options, required(job)))
    apply = ["kubectl", "apply", "--filename=-"]
    if options.dry_run:
        print(f"{shown(apply)}  # reads this manifest:")
    if options.dry_run or options.print:
        print(manifest, end="")
        return 0
    return run(apply, given=manifest).returncode


if __name__ == "__main__":
    exit_with(main)
