"""Checkpoints of raters as judges, alone or several as one, and how well they predict votes."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from etils import epath

from nlhf_jax import checkpoints, processes
from nlhf_jax.checkpoints.networks import Network, open_network, warn_of_short_texts
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.calibration import CalibratedJudge, fit_temperature
from nlhf_jax.evaluation.counting import CountingJudge
from nlhf_jax.evaluation.judgements import Judgements
from nlhf_jax.evaluation.judges import (
    AntisymmetricModelJudge,
    AskedOnce,
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


def paths_of(source: Source) -> Sequence[str]:
    """The checkpoints, one or several."""
    return [source] if isinstance(source, str) else source


def identities_of(sources: Sequence[str]) -> list[str]:
    """What the checkpoints hold, see `checkpoints.identity`; the first process looks."""
    return processes.from_first(lambda: [checkpoints.identity(one) for one in sources])


class Seat(NamedTuple):
    """A judge at a tournament.

    Attributes:
      name: under which its judgements are kept.
      judge: who is asked.
      networks: of its checkpoints, if it is made of such.
      source: those checkpoints.
      identity: by which it is known again in a later run; None if it is not.
    """

    name: str
    judge: Judge
    networks: Sequence[Network] = ()
    source: Source | None = None
    identity: Any = None

    def has_trained(self, policy: Network) -> bool | None:
        """Whether a policy was trained against it; None if that is not known."""
        known = [one.is_rater_of(policy) for one in self.networks]
        return True if any(known) else None if None in known else False

    def chooses_for(self, rater: Source | None) -> bool:
        """Whether the judge is among the checkpoints by which a player's responses are chosen."""
        if rater is None or self.source is None:
            return False
        return not set(paths_of(rater)).isdisjoint(paths_of(self.source))

    def kept(self, workdir: str) -> Judgements:
        """The judge with what it has said in `workdir`."""
        return Judgements(epath.Path(workdir), self.name, self.judge, self.identity)


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

    def open(self, path: str, kind: str = "policy") -> Network:
        """The network of a checkpoint, whose parameters are read when they are asked for."""
        return open_network(
            path,
            self.partitioner,
            self.data,
            kind=kind,
            compute_dtype=self.compute_dtype,
            feature_lengths=self.feature_lengths,
        )

    def load(self, path: str, kind: str = "policy") -> Network:
        """The network of a checkpoint, with its parameters."""
        network = self.open(path, kind)
        _ = network.params
        return network

    def seat(self, judge: Judge | None, rater_checkpoint: Source | None) -> Seat:
        """Of the judge that is given, of networks', which come with it, or of the data's own."""
        if judge is not None:
            return _seat_of(AskedOnce(judge))
        if rater_checkpoint is not None:
            return self._networks_seat(rater_checkpoint, f"RATER_CHECKPOINT {rater_checkpoint}")
        if self.data.judge is None:
            raise UserError(
                f"the data '{self.data.name}' has no judge of its own; give RATER_CHECKPOINT, a "
                "preference model"
            )
        return _seat_of(self.data.judge)

    def other_seat(self, name: str, one: Source | Judge) -> Seat:
        """One of JUDGES, called as it is there: checkpoints, or a judge as such."""
        if isinstance(one, str | list | tuple):
            setting = f"JUDGES has '{name}': {one}, which"
            seat = self._networks_seat(one, setting)
        else:
            seat = _seat_of(AskedOnce(cast(Judge, one)))
        return seat._replace(name=name)

    def _networks_seat(self, source: Source, setting: str) -> Seat:
        judge, networks = self.rater_judge(source, setting)
        for network in networks:
            warn_of_short_texts(network, setting, self.feature_lengths)
        paths = paths_of(source)
        identities = identities_of(paths)
        lengths = [network.feature_lengths for network in networks]
        how = [self.compute_dtype, getattr(judge, "temperature", None), *lengths]
        return Seat(judge.name, judge, networks, source, [*identities, *how])

    def rater_judge(self, source: Source, setting: str) -> tuple[Judge, Sequence[Network]]:
        """The judge that a checkpoint is, or the mean of several, and the networks behind it.

        Calibrated by the votes of "validation" if that was asked for. `setting` is what names the
        checkpoints, for errors.
        """
        paths = paths_of(source)
        networks = [self.load(path, kind="preference") for path in paths]
        judges = [self.network_judge(network, setting) for network in networks]
        judge: Judge = judges[0] if len(judges) == 1 else EnsembleJudge(judges)
        if self.calibrate:
            votes = self._votes("validation", networks[0].feature_lengths)
            judge = CalibratedJudge(judge, fit_temperature(judge, *votes))
        return judge, networks

    def network_judge(self, network: Network, setting: str) -> NetworkJudge:
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
        judging: Seat,
        split: str,
        counts: bool | None,
    ) -> tuple[tuple[RaterAccuracy, ...], str | None]:
        """Accuracies on all votes of `split`: the population's if it is known, then the raters'.

        That of the checkpoint which judges, `judging`, is among them, and its name is returned
        beside them; that of counting is the last. Nothing is measured without raters.
        """
        progress.status("measures the raters on votes")
        of_judge, judge = judging.source, (judging.judge, judging.networks)
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


def _seat_of(judge: Judge) -> Seat:
    return Seat(judge.name, judge, identity=getattr(judge, "identity", None))
