"""Checkpoints of raters as judges, alone or several as one, and how well they predict votes."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nlhf_jax.checkpoints.networks import Network, load_network
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.calibration import CalibratedJudge, fit_temperature
from nlhf_jax.evaluation.counting import CountingJudge
from nlhf_jax.evaluation.judges import (
    AntisymmetricModelJudge,
    EmbeddingJudge,
    EnsembleJudge,
    Judge,
    NetworkJudge,
    PreferenceModelJudge,
    RewardModelJudge,
)
from nlhf_jax.evaluation.votes import RaterAccuracy, rater_accuracy
from nlhf_jax.metrics import Progress
from nlhf_jax.models.language_model import PyTree
from nlhf_jax.raters import KINDS, PreferenceEmbedding, Rater, RewardModel
from nlhf_jax.sharding import Partitioner

Source = str | Sequence[str]  # a checkpoint, or several that rate as one


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where judges sit: what all of a job's networks share."""

    data: Dataset
    partitioner: Partitioner
    feature_lengths: Mapping[str, int]
    batch_size: int
    seed: int
    compute_dtype: str | None
    calibrate: bool | None

    def load(self, path: str, kind: str = "policy") -> Network:
        return load_network(
            path,
            self.partitioner,
            self.data,
            kind=kind,
            compute_dtype=self.compute_dtype,
            feature_lengths=self.feature_lengths,
        )

    def rater_judge(self, source: Source, setting: str) -> tuple[Judge, Sequence[Network]]:
        """The judge that a checkpoint is, or the mean of several, and the networks behind it.

        Calibrated by the votes of "validation" if that was asked for. `setting` is what names the
        checkpoints, for errors.
        """
        paths = [source] if isinstance(source, str) else source
        networks = [self.load(path, kind="preference") for path in paths]
        judges = [self._network_judge(network, setting) for network in networks]
        judge: Judge = judges[0] if len(judges) == 1 else EnsembleJudge(judges)
        if self.calibrate:
            votes = self._votes("validation", networks[0].feature_lengths)
            judge = CalibratedJudge(judge, fit_temperature(judge, *votes))
        return judge, networks

    def _network_judge(self, network: Network, setting: str) -> NetworkJudge:
        """The judge that a network of one of `raters.KINDS` is."""
        if network.kind not in KINDS:
            raise UserError(
                f"{setting} is a {network.kind} model and not a preference or reward model"
            )
        judge, question = _judge_of(network.rater())
        program = compiled(self.partitioner, question)

        def ask(*tokens: np.ndarray) -> jax.Array:
            batch = dict(zip(("text", "first", "second"), tokens, strict=False))
            return program(network.params, *self.partitioner.place_batch(batch).values())

        lengths = network.feature_lengths
        for name in ("text", "summary"):
            if name not in lengths:
                raise UserError(
                    f"TASK_FEATURE_LENGTHS has no {name!r}, and the rater's checkpoint, which is "
                    "not nlhf's own, does not say how long its texts were"
                )
        return judge(
            ask,
            self.data.vocabulary.encode,
            network.model.tokens,
            lengths["text"],
            lengths["summary"],
            self.partitioner.whole_shares(self.batch_size),
            functools.partial(self.data.prompt_form.tokens, encode=self.data.vocabulary.encode),
        )

    def measure(
        self,
        progress: Progress,
        raters: Mapping[str, Source],
        judging: tuple[Source | None, Judge, Sequence[Network]],
        split: str,
        counts: bool | None,
    ) -> tuple[tuple[RaterAccuracy, ...], str | None]:
        """Accuracies on all votes of `split`: the population's if it is known, then the raters'.

        That of the checkpoint which judges, `judging`, is among them, and its name is returned
        beside them; that of counting is the last. Nothing is measured without raters.
        """
        progress.status("measures the raters on votes")
        of_judge, judge = judging[0], judging[1:]
        if raters and of_judge is not None and of_judge not in raters.values():
            raters = {**raters, "judge": of_judge}
        found: list[RaterAccuracy] = []
        for name, source in raters.items():
            setting = f"RATERS has '{name}': {source}, which"
            rater, networks = judge if source == of_judge else self.rater_judge(source, setting)
            lengths = networks[0].feature_lengths
            votes = (*self._votes(split, lengths), self.seed)
            own = self.data.judge
            if own is not None and not found:  # the texts are the same for every rater
                found.append(rater_accuracy(own.name, own, *votes))
            found.append(rater_accuracy(name, rater, *votes))
        if found and counts:
            with _said(progress):
                counting = CountingJudge(*self._votes("train", lengths))
                found.append(rater_accuracy(counting.name, counting, *votes))
        for one in found:
            progress.message(f"{one.name} agrees with {one.accuracy.value:.1%} of the votes")
        judge_name = next((name for name, source in raters.items() if source == of_judge), None)
        return tuple(found), judge_name

    def _votes(
        self, split: str, lengths: Mapping[str, int]
    ) -> tuple[list[str], list[str], list[str], np.ndarray]:
        """Prompts, the chosen and the rejected summaries, and the shares that chose so."""
        examples = self.data.examples("comparisons", split, lengths)
        text, chosen, rejected = map(examples.texts, ("text", "chosen", "rejected"))
        return text, chosen, rejected, examples.arrays["vote_share"]


@contextlib.contextmanager
def _said(progress: Progress) -> Iterator[None]:
    """Inside, a user's error ends what is done there, and nothing else."""
    try:
        yield
    except UserError as error:
        progress.message(f"left out: {error}")


def _judge_of(rater: Rater) -> tuple[Callable[..., NetworkJudge], Callable]:
    """The judge that a rater is, and what that one asks it, parameters first."""
    if isinstance(rater, PreferenceEmbedding):

        def embed(params: PyTree, text: jax.Array, response: jax.Array) -> jax.Array:
            return rater.embed(params, text, response[:, None])[:, 0]

        return functools.partial(EmbeddingJudge, logit=rater.compare), embed
    if isinstance(rater, RewardModel):
        return RewardModelJudge, rater.reward
    judge = AntisymmetricModelJudge if rater.antisymmetric else PreferenceModelJudge
    return judge, functools.partial(rater.probability, both_orders=False)


def compiled(partitioner: Partitioner, function: Callable) -> Callable:
    """The function on the mesh: each device works on its rows, and all get the whole result."""

    def run(*arguments: Any) -> Any:
        with partitioner.activate():
            return function(*arguments)

    return jax.jit(run, out_shardings=partitioner.replicated)
