"""Starts any `nlhf` command on many processes: programs of a checkout, not part of the package.

| program | starts it |
|---|---|
| `local.py` | in several processes of this machine |
| `tpu_vm.py` | on all workers of Cloud TPU VMs (a queued resource), again after preemption |
| `gke.py` | as a JobSet on TPU slices of a GKE cluster; prints XPK's command too |
| `slurm.py` | on GPU nodes, as a batch job that is queued again at its time limit |
| `evaluate_beside.py` | for every new checkpoint of a training that goes on |

What stands after `--` is the `nlhf` command, without `nlhf`. `--dry_run` prints what would be done.
They need the standard library only (`evaluate_beside.py` reads directories as `nlhf` does).
"""
