"""The `evaluate` job: a tournament between checkpoints."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from nlhf_jax.checkpoints.networks import Network, load_network, warn_of_short_texts
from nlhf_jax.data import json_lines
from nlhf_jax.data.batches import Examples
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.data.templates import feature_length
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.calibration import CalibratedJudge, fit_temperature
from nlhf_jax.evaluation.counting import CountingJudge
from nlhf_jax.evaluation.judges import (
    AntisymmetricModelJudge,
    AskedOnce,
    EmbeddingJudge,
    Judge,
    NetworkJudge,
    PreferenceModelJudge,
    RewardModelJudge,
)
from nlhf_jax.evaluation.results import warnings
from nlhf_jax.evaluation.tournament import Player, play
from nlhf_jax.evaluation.votes import RaterAccuracy, rater_accuracy
from nlhf_jax.jobs import run_record
from nlhf_jax.metrics import Progress
from nlhf_jax.models.language_model import LanguageModel, PyTree, response_mask, token_log_probs
from nlhf_jax.raters import KINDS, PreferenceEmbedding, Rater, RewardModel
from nlhf_jax.rollout import sample_responses
from nlhf_jax.sharding import Partitioner


def evaluate(
    workdir: str,
    players: Mapping[str, str],
    reference: str,
    data: Dataset,
    partitioner: Partitioner,
    feature_lengths: Mapping[str, int],
    num_prompts: int | None,
    batch_size: int,
    seed: int,
    split: str,
    temperature: float,
    rater_checkpoint: str | None = None,
    raters: Mapping[str, str] | None = None,
    compute_dtype: str | None = None,
    judge: Judge | None = None,
    counts: bool | None = None,
    calibrate: bool | None = None,
) -> None:
    """A tournament of policies on the same prompts; writes `workdir/tournament.json`.

    Beside it, `run.json` says which step each checkpoint was.

    Args:
      workdir: gets the result.
      players: policy name -> checkpoint, as in `checkpoints.open_checkpoint`.
      reference: the checkpoint to which KL is measured, the SFT policy.
      data: tasks with `split`.
      partitioner: the mesh.
      feature_lengths: `inputs` and `targets`.
      num_prompts: how many of the split's, drawn with `seed`; None for all.
      batch_size: prompts that are sampled at once.
      seed: of the prompts that are drawn, the samples and the bootstrap.
      split: of the prompts, and of the votes that `raters` predict.
      rater_checkpoint: a rater of any kind as the judge; None asks the data's own
        population.
      raters: name -> checkpoint of a rater of any kind whose accuracy on votes to measure,
        beside that of the data's own population if it is known, and of the judge if it is a
        checkpoint; None measures nothing.
      temperature: of the samples. KL is that of the policy at this temperature from the reference
        at 1; at 0, where each prompt has one response, it is `-log mu` of that.
      compute_dtype: of activations; None for those of the checkpoints' runs.
      judge: in place of `rater_checkpoint`, any `nlhf_jax.evaluation.judges.Judge`.
      counts: measure beside `raters` what counting words comes to (`evaluation.counting`), fitted
        to the votes of the split "train"; left out, and said so, without scikit-learn.
      calibrate: divide the log-odds of raters, of the judge too if it is a checkpoint, by the
        temperature that fits the votes of the split "validation" best (`evaluation.calibration`).

    Raises:
      UserError: a checkpoint or data that cannot be used, or no judge.
    """
    opened = run_record.Opened()  # what they mean now: other steps may be saved while they play
    players = {name: opened.path(source) for name, source in players.items()}
    raters = {name: opened.path(source) for name, source in (raters or {}).items()}
    reference = opened.path(reference)
    rater_checkpoint = rater_checkpoint and opened.path(rater_checkpoint)
    shared = (data, partitioner, feature_lengths, batch_size, seed, compute_dtype, calibrate)
    hall = _Hall(*shared)
    judge, asked = hall.choose(judge, rater_checkpoint)
    progress = Progress(epath.Path(workdir).name, len(players))
    # Before the responses are sampled: a rater that is none is found out at once.
    measured = hall.measure(progress, raters, rater_checkpoint, split, counts)
    examples = data.examples("prompts", split, feature_lengths)
    hall.say_what_is_left_out(progress, examples, split)
    in_split = len(examples)
    examples = examples.take(num_prompts or in_split, seed)
    prompts, references = examples.texts("inputs"), examples.texts("references")
    progress.status("samples the players' responses")
    entries, trained = {}, {}
    for name, network, player in hall.enter(players, reference, examples, temperature):
        entries[name] = player
        trained[name] = False if asked is None else asked.is_rater_of(network)
        progress.message(f"{name} has written {len(prompts)} responses")
    result = play(
        prompts,
        entries,
        judge,
        references=references if references and all(references) else None,
        seed=seed,
    )
    result = dataclasses.replace(
        result.with_raters(*measured),
        prompts_in_split=in_split,
        temperature=temperature,
        trained_against_judge=tuple(name for name in trained if trained[name]),
        training_unknown=tuple(name for name in trained if trained[name] is None),
    )
    result.save(epath.Path(workdir) / "tournament.json")
    opened.write(workdir)
    for warning in warnings(result):
        progress.message(f"warning: {warning}")
    progress.close()


@dataclasses.dataclass(frozen=True)
class _Hall:
    """Where a tournament takes place: what all its players, judges and raters share."""

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

    def choose(
        self, judge: Judge | None, rater_checkpoint: str | None
    ) -> tuple[Judge, Network | None]:
        """The judge that is given, or a network's, which comes with it, or the data's own."""
        if judge is not None:
            return AskedOnce(judge), None
        if rater_checkpoint is not None:
            rater = self.load(rater_checkpoint, kind="preference")
            source = f"RATER_CHECKPOINT {rater_checkpoint}"
            warn_of_short_texts(rater, source, self.feature_lengths)
            return self.rater_judge(rater, source), rater
        if self.data.judge is None:
            raise UserError(
                f"the data '{self.data.name}' has no judge of its own; give RATER_CHECKPOINT, a "
                "preference model"
            )
        return self.data.judge, None

    def say_what_is_left_out(self, progress: Progress, examples: Examples, split: str) -> None:
        """Which lines were skipped, and how many prompts are too long."""
        skipped = [*self.data.skipped("prompts", split), *self.data.skipped("comparisons", split)]
        for sentence in json_lines.shortened(skipped):
            progress.message(f"skipped: {sentence}")
        if cut := examples.truncated.get("inputs", 0):
            progress.message(
                f"{cut} of {len(examples)} prompts ({cut / len(examples):.1%}) are longer than "
                f"TASK_FEATURE_LENGTHS['inputs'], {self.feature_lengths['inputs']}, and cut"
            )

    def rater_judge(self, network: Network, source: str) -> Judge:
        """`network_judge`, calibrated by the votes of "validation" if that was asked for."""
        judge = self.network_judge(network, source)
        if not self.calibrate:
            return judge
        votes = self._votes("validation", network.feature_lengths)
        return CalibratedJudge(judge, fit_temperature(judge, *votes))

    def network_judge(self, network: Network, source: str) -> NetworkJudge:
        """The judge that a network of one of `raters.KINDS` is."""
        if network.kind not in KINDS:
            raise UserError(
                f"{source} is a {network.kind} model and not a preference or reward model"
            )
        judge, question = _judge_of(network.rater())
        program = _compiled(self.partitioner, question)

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
        raters: Mapping[str, str],
        judging: str | None,
        split: str,
        counts: bool | None,
    ) -> tuple[tuple[RaterAccuracy, ...], str | None]:
        """Accuracies on all votes of `split`: the population's if it is known, then the raters'.

        That of the checkpoint which judges is among them, and its name is returned beside them;
        that of counting is the last. Nothing is measured without raters.
        """
        progress.status("measures the raters on votes")
        if raters and judging is not None and judging not in raters.values():
            raters = {**raters, "judge": judging}
        found: list[RaterAccuracy] = []
        for name, path in raters.items():
            network = self.load(path, kind="preference")
            judge = self.rater_judge(network, f"RATERS has '{name}': {path}, which")
            votes = (*self._votes(split, network.feature_lengths), self.seed)
            own = self.data.judge
            if own is not None and not found:  # the texts are the same for every rater
                found.append(rater_accuracy(own.name, own, *votes))
            found.append(rater_accuracy(name, judge, *votes))
        if found and counts:
            with _said(progress):
                counting = CountingJudge(*self._votes("train", network.feature_lengths))
                found.append(rater_accuracy(counting.name, counting, *votes))
        for rater in found:
            progress.message(f"{rater.name} agrees with {rater.accuracy.value:.1%} of the votes")
        judge_name = next((name for name, path in raters.items() if path == judging), None)
        return tuple(found), judge_name

    def _votes(
        self, split: str, lengths: Mapping[str, int]
    ) -> tuple[list[str], list[str], list[str], np.ndarray]:
        """Prompts, the chosen and the rejected summaries, and the shares that chose so."""
        examples = self.data.examples("comparisons", split, lengths)
        text, chosen, rejected = map(examples.texts, ("text", "chosen", "rejected"))
        return text, chosen, rejected, examples.arrays["vote_share"]

    def enter(
        self, players: Mapping[str, str], reference: str, examples: Examples, temperature: float
    ) -> Iterator[tuple[str, Network, Player]]:
        """The players with the responses that they write, one after the other."""
        base = self.load(reference)
        length = feature_length(self.feature_lengths, "targets", "a tournament")
        programs: dict[str, Callable] = {}
        for index, (name, source) in enumerate(players.items()):
            # P(pi > pi') is over independent draws: one key for all would couple their responses.
            key = jax.random.fold_in(jax.random.key(self.seed), index)
            network = self.load(source)
            architecture = str(network.model.description())
            if architecture not in programs:  # players of one architecture share a program
                programs[architecture] = _compiled(
                    self.partitioner, _sampling(network.model, base.model, length, temperature)
                )
            yield name, network, self._write(network, base, programs[architecture], examples, key)

    def _write(
        self,
        network: Network,
        base: Network,
        program: Callable,
        examples: Examples,
        key: jax.Array,
    ) -> Player:
        """Samples one player's responses, with their log-probability ratios to the base policy."""
        responses, ratios = [], []
        rows = self.partitioner.whole_shares(self.batch_size)
        for number, batch in enumerate(examples.eval_batches(self.batch_size, rows)):
            inputs = self.partitioner.place_batch({"inputs": batch["inputs"]})["inputs"]
            tokens, ratio = jax.device_get(
                program(network.params, base.params, inputs, jax.random.fold_in(key, number))
            )
            kept = batch["valid"] > 0
            responses.append(tokens[kept])
            ratios.append(ratio[kept])
        tokens = np.concatenate(responses)
        mask = response_mask(tokens, network.model.tokens.eos)
        return Player(
            responses=[self.data.vocabulary.decode(row.tolist()) for row in tokens],
            log_ratios=np.concatenate(ratios),
            token_counts=np.asarray(mask.sum(axis=-1)),
        )


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


def _compiled(partitioner: Partitioner, function: Callable) -> Callable:
    """The function on the mesh: each device works on its rows, and all get the whole result."""

    def run(*arguments: Any) -> Any:
        with partitioner.activate():
            return function(*arguments)

    return jax.jit(run, out_shardings=partitioner.replicated)


def _sampling(
    policy: LanguageModel, base: LanguageModel, length: int, temperature: float
) -> Callable:
    """(policy's parameters, base's, inputs, key) -> responses `[B, T]` and log ratios `[B]`.

    The ratios are of the distribution that was sampled, at `temperature`, and the base's own.
    """

    def run(params, base_params, inputs, key):
        responses = sample_responses(policy, params, inputs, key, length, temperature)

        def log_prob(model, values, temperature):
            if temperature == 0:  # all probability is on this response
                return jnp.zeros(responses.shape[0])
            logits = model.logits(values, model.encode(values, inputs), responses)
            mask = response_mask(responses, model.tokens.eos)
            return (token_log_probs(logits / temperature, responses) * mask).sum(axis=-1)

        ratios = log_prob(policy, params, temperature) - log_prob(base, base_params, 1.0)
        return responses, ratios

    return run
