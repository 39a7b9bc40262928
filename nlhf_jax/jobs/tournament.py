"""The `evaluate` job: a tournament between checkpoints."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from nlhf_jax.checkpoints.networks import Network, load_network
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.judges import (
    Judge,
    NetworkJudge,
    PreferenceModelJudge,
    RewardModelJudge,
)
from nlhf_jax.evaluation.tournament import Player, play, warnings
from nlhf_jax.evaluation.votes import RaterAccuracy, rater_accuracy
from nlhf_jax.metrics import Progress
from nlhf_jax.models.language_model import LanguageModel, response_mask, token_log_probs
from nlhf_jax.rollout import sample as sample_responses
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
    split: str = "test",
    rater_checkpoint: str | None = None,
    raters: Mapping[str, str] | None = None,
    temperature: float = 1.0,
    compute_dtype: str | None = None,
) -> None:
    """A tournament of policies on the same prompts; writes `workdir/tournament.json`.

    Args:
      workdir: gets the result.
      players: policy name -> checkpoint, as in `checkpoints.open_checkpoint`.
      reference: the checkpoint to which KL is measured, the SFT policy.
      data: tasks with `split`.
      partitioner: the mesh.
      feature_lengths: `inputs` and `targets`.
      num_prompts: from the start of the split; None for all.
      batch_size: prompts that are sampled at once.
      seed: of the samples and the bootstrap.
      split: of the prompts, and of the votes that `raters` predict.
      rater_checkpoint: a preference model as the judge; None asks the data's own population.
      raters: name -> checkpoint of a preference or reward model whose accuracy on votes to measure,
        beside that of the data's own population if it is known; None measures nothing.
      temperature: of the samples.
      compute_dtype: of activations; None for those of the checkpoints' runs.

    Raises:
      UserError: a checkpoint or data that cannot be used, or no judge.
    """
    load = functools.partial(
        load_network,
        partitioner=partitioner,
        data=data,
        compute_dtype=compute_dtype,
        feature_lengths=feature_lengths,
    )
    ask = functools.partial(
        _network_judge, data=data, partitioner=partitioner, batch_size=batch_size
    )
    judge = _judge(rater_checkpoint, data, load, ask)
    progress = Progress(Path(workdir).name, len(players))
    progress.status("measures the raters on votes")
    # Before the responses are sampled: a rater that is none is found out at once.
    measured = _measure(raters or {}, data, split, load, ask, seed)
    for rater in measured:
        progress.message(f"{rater.name} agrees with {rater.accuracy.value:.1%} of the votes")
    examples = data.examples("prompts", split, feature_lengths)
    examples = examples.take(num_prompts or len(examples))
    prompts, references = examples.texts("inputs"), examples.texts("references")
    progress.status("samples the players' responses")
    base = load(reference)
    entries, programs = {}, {}
    for index, (name, source) in enumerate(players.items()):
        # P(pi > pi') is over independent draws: one key for all would couple their responses.
        key = jax.random.fold_in(jax.random.key(seed), index)
        network = load(source)
        architecture = str(network.model.description())
        if architecture not in programs:  # players of one architecture share a program
            programs[architecture] = _sampling_program(
                network.model, base.model, feature_lengths["targets"], temperature
            )
        entries[name] = _enter(
            network,
            base,
            programs[architecture],
            examples,
            data.vocabulary,
            partitioner,
            batch_size,
            key,
        )
        progress.message(f"{name} has written {len(prompts)} responses")
    result = play(
        prompts,
        entries,
        judge,
        references=references if references and all(references) else None,
        seed=seed,
    )
    result = dataclasses.replace(result, raters=measured)
    result.save(Path(workdir) / "tournament.json")
    for warning in warnings(result):
        progress.message(f"warning: {warning}")
    progress.close()


def _judge(
    rater_checkpoint: str | None,
    data: Dataset,
    load: Callable[..., Network],
    ask: Callable[[Network], Judge],
) -> Judge:
    if rater_checkpoint is None:
        if data.judge is None:
            raise UserError(
                f"the data '{data.name}' has no judge of its own; give RATER_CHECKPOINT, a "
                "preference model"
            )
        return data.judge
    rater = load(rater_checkpoint, kind="preference")
    if rater.kind != "preference":
        raise UserError(
            f"RATER_CHECKPOINT {rater_checkpoint} is a {rater.kind} model, not a preference model"
        )
    return ask(rater)


def _network_judge(
    network: Network, data: Dataset, partitioner: Partitioner, batch_size: int
) -> NetworkJudge:
    """The judge that a network of the kind "preference" or "reward" is."""
    if network.kind == "preference":
        judge = PreferenceModelJudge
        program = functools.partial(network.preference_model().probability, both_orders=False)
    else:
        judge, program = RewardModelJudge, network.reward_model().reward
    program = jax.jit(program)

    def ask(*tokens: np.ndarray) -> jax.Array:
        batch = dict(zip(("text", "first", "second"), tokens, strict=False))
        return program(network.params, *partitioner.place_batch(batch).values())

    lengths = network.feature_lengths
    for name in ("text", "summary"):
        if name not in lengths:
            raise UserError(
                f"TASK_FEATURE_LENGTHS has no {name!r}, and the rater's checkpoint, which is not "
                "nlhf's own, does not say how long its texts were"
            )
    return judge(ask, data.vocabulary.encode, lengths["text"], lengths["summary"], batch_size)


def _measure(
    raters: Mapping[str, str],
    data: Dataset,
    split: str,
    load: Callable[..., Network],
    ask: Callable[[Network], Judge],
    seed: int,
) -> tuple[RaterAccuracy, ...]:
    """Accuracies on all comparisons of `split`: the population's if it is known, then the raters'.

    Nothing is measured if there are no raters.
    """
    found = []
    for name, path in raters.items():
        network = load(path, kind="preference")
        if network.kind not in ("preference", "reward"):
            raise UserError(
                f"RATERS has '{name}': {path}, which is a {network.kind} model and not a "
                "preference or reward model"
            )
        examples = data.examples("comparisons", split, network.feature_lengths)
        texts = [examples.texts(feature) for feature in ("text", "chosen", "rejected")]
        weights = examples.arrays["weight"]
        if data.judge is not None and not found:  # the texts are the same for every rater
            found.append(rater_accuracy(data.judge.name, data.judge, *texts, weights, seed))
        judge = ask(network)
        found.append(rater_accuracy(name, judge, *texts, weights, seed))
    return tuple(found)


def _enter(network, base, program, examples, vocabulary, partitioner, batch_size, key) -> Player:
    """Samples one player's responses, with their log-probability ratios to the base policy."""
    responses, ratios = [], []
    for number, batch in enumerate(examples.eval_batches(batch_size)):
        inputs = partitioner.place_batch({"inputs": batch["inputs"]})["inputs"]
        tokens, ratio = jax.device_get(
            program(network.params, base.params, inputs, jax.random.fold_in(key, number))
        )
        kept = batch["valid"] > 0
        responses.append(tokens[kept])
        ratios.append(ratio[kept])
    tokens = np.concatenate(responses)
    return Player(
        responses=[vocabulary.decode(row.tolist()) for row in tokens],
        log_ratios=np.concatenate(ratios),
        token_counts=np.asarray(response_mask(tokens).sum(axis=-1)),
    )


def _sampling_program(
    policy: LanguageModel, base: LanguageModel, length: int, temperature: float
) -> Callable:
    """(policy's parameters, base's, inputs, key) -> responses `[B, T]` and log ratios `[B]`."""

    def run(params, base_params, inputs, key):
        responses = sample_responses(policy, params, inputs, key, length, temperature)

        def log_prob(model, values):
            logits = model.logits(values, model.encode(values, inputs), responses)
            return (token_log_probs(logits, responses) * response_mask(responses)).sum(axis=-1)

        return responses, log_prob(policy, params) - log_prob(base, base_params)

    return jax.jit(run)
