"""What the command line and gin files name: `jobs.train`, `jobs.evaluate`, ..."""

from nlhf_jax.jobs.findings import games
from nlhf_jax.jobs.sampling import prompt_form, sample
from nlhf_jax.jobs.tournament import evaluate
from nlhf_jax.jobs.training import train
from nlhf_jax.jobs.vocabulary import train_vocabulary

__all__ = ["evaluate", "games", "prompt_form", "sample", "train", "train_vocabulary"]
