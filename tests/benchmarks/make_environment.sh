#!/usr/bin/env bash
# make_environment.sh DIR: a Python 3.11 environment for against_trl.py, with this checkout (editable), TRL and PyTorch.
# The versions are those that figures are quoted for. Without an NVIDIA GPU PyTorch's build for CPUs is taken, if pip
# finds it; the usual build also runs there, but brings 3 GB of CUDA with it, without which it cannot be imported.
set -euo pipefail
directory=${1:?"usage: make_environment.sh DIR"}
repository=$(cd "$(dirname "$0")/../.." && pwd)

"${PYTHON:-python3.11}" -m venv "$directory"
pip=("$directory/bin/python" -m pip install -q -c "$repository/requirements.lock")
hugging_face=(trl==1.12.0 transformers==5.24.0 datasets==5.2.0 accelerate==1.15.0)
if nvidia-smi -L >/dev/null 2>&1; then
  "${pip[@]}" -e "$repository[gpu]" torch==2.14.1 "${hugging_face[@]}"
else
  "${pip[@]}" torch==2.13.0+cpu 2>/dev/null || "${pip[@]}" torch==2.14.1
  "${pip[@]}" -e "$repository" "${hugging_face[@]}"
fi
"$directory/bin/python" -c 'import jax, torch, transformers, trl
print("jax", jax.__version__, "torch", torch.__version__, "transformers", transformers.__version__, "trl", trl.__version__)'
