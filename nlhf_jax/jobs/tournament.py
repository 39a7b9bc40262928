"""The `evaluate` job: a tournament between checkpoints."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from nlhf_jax.checkpoints.networks import Network, warn_of_short_texts
from nlhf_jax.data import json_lines
from nlhf_jax.data.batches import Examples
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.data.templates import feature_length
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.judges import AskedOnce, Judge
from nlhf_jax.evaluation.results import warnings
from nlhf_jax.evaluation.tournament import Player, play
from nlhf_jax.jobs import run_record
from nlhf_jax.jobs.judging import Bench, Source, compiled
from nlhf_jax.jobs.tracked import track_tournament
from nlhf_jax.metrics import Progress
from nlhf_jax.models.language_model import LanguageModel, response_mask, token_log_probs
from nlhf_jax.rollout import sample_responses
from nlhf_jax.sharding import Partitioner
from nlhf_jax.tracking import requested


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
    rater_checkpoint: Source | None = None,
    raters: Mapping[str, Source] | None = None,
    compute_dtype: str | None = None,
    judge: Judge | None = None,
    counts: bool | None = None,
    calibrate: bool | None = None,
    tracking: str | None = None,
    tracking_project: str | None = None,
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
      rater_checkpoint: a rater of any kind as the judge, or several, whose mean judges; None asks
        the data's own population.
      raters: name -> checkpoint of a rater of any kind, or several as one, whose accuracy on votes
        to measure, beside that of the data's own population if it is known, and of the judge if it
        is a checkpoint; None measures nothing.
      temperature: of the samples. KL is that of the policy at this temperature from the reference
        at 1; at 0, where each prompt has one response, it is `-log mu` of that.
      compute_dtype: of activations; None for those of the checkpoints' runs.
      judge: in place of `rater_checkpoint`, any `nlhf_jax.evaluation.judges.Judge`.
      counts: measure beside `raters` what counting words comes to (`evaluation.counting`), fitted
        to the votes of the split "train"; left out, and said so, without scikit-learn.
      calibrate: divide the log-odds of raters, of the judge too if it is a checkpoint, by the
        temperature that fits the votes of the split "validation" best (`evaluation.calibration`).
      tracking: "wandb" or "mlflow": where figures and samples go too; None for nowhere.
      tracking_project: the project there, of MLflow the experiment.

    Raises:
      UserError: a checkpoint or data that cannot be used, or no judge.
    """
    tracked = requested(tracking, tracking_project, {"seed": seed, "players": [*players]})
    opened = run_record.Opened()  # what they mean now: other steps may be saved while they play
    players = {name: opened.path(source) for name, source in players.items()}
    raters = {name: _opened(opened, source) for name, source in (raters or {}).items()}
    reference = opened.path(reference)
    rater_checkpoint = rater_checkpoint and _opened(opened, rater_checkpoint)
    hall = _Hall(data, partitioner, feature_lengths, batch_size, seed, compute_dtype, calibrate)
    judge, asked = hall.choose(judge, rater_checkpoint)
    progress = Progress(epath.Path(workdir).name, len(players))
    # Before the responses are sampled: a rater that is none is found out at once.
    measured = hall.measure(progress, raters, (rater_checkpoint, judge, asked), split, counts)
    examples, in_split = hall.prompts(progress, split, num_prompts)
    prompts, references = examples.texts("inputs"), examples.texts("references")
    progress.status("samples the players' responses")
    entries, trained = {}, {}
    for name, network, player in hall.enter(players, reference, examples, temperature):
        entries[name] = player
        known = [rater.is_rater_of(network) for rater in asked]
        trained[name] = any(known) or (None if None in known else False)
        progress.message(f"{name} has written {len(prompts)} responses")
    complete = references if references and all(references) else None
    result = play(prompts, entries, judge, references=complete, seed=seed)
    result = dataclasses.replace(
        result.with_raters(*measured),
        prompts_in_split=in_split,
        temperature=temperature,
        trained_against_judge=tuple(name for name in trained if trained[name]),
        training_unknown=tuple(name for name in trained if trained[name] is None),
    )
    result.save(epath.Path(workdir) / "tournament.json")
    opened.write(workdir)
    track_tournament(tracked, workdir, result)
    for warning in warnings(result):
        progress.message(f"warning: {warning}")
    progress.close()


def _opened(opened: run_record.Opened, source: Source) -> Source:
    return opened.path(source) if isinstance(source, str) else tuple(map(opened.path, source))


class _Hall(Bench):
    """Where a tournament takes place: what its players and its judges share."""

    def choose(
        self, judge: Judge | None, rater_checkpoint: Source | None
    ) -> tuple[Judge, Sequence[Network]]:
        """The judge that is given, or networks', which come with it, or the data's own."""
        if judge is not None:
            return AskedOnce(judge), ()
        if rater_checkpoint is not None:
            source = f"RATER_CHECKPOINT {rater_checkpoint}"
            judge, networks = self.rater_judge(rater_checkpoint, source)
            for network in networks:
                warn_of_short_texts(network, source, self.feature_lengths)
            return judge, networks
        if self.data.judge is None:
            raise UserError(
                f"the data '{self.data.name}' has no judge of its own; give RATER_CHECKPOINT, a "
                "preference model"
            )
        return self.data.judge, ()

    def prompts(
        self, progress: Progress, split: str, num_prompts: int | None
    ) -> tuple[Examples, int]:
        """Those that are played, and how many there are."""
        examples = self.data.examples("prompts", split, self.feature_lengths)
        self._say_what_is_left_out(progress, examples, split)
        return examples.take(num_prompts or len(examples), self.seed), len(examples)

    def _say_what_is_left_out(self, progress: Progress, examples: Examples, split: str) -> None:
        """Which lines were skipped, and how many prompts are too long."""
        skipped = [*self.data.skipped("prompts", split), *self.data.skipped("comparisons", split)]
        for sentence in json_lines.shortened(skipped):
            progress.message(f"skipped: {sentence}")
        if cut := examples.truncated.get("inputs", 0):
            progress.message(
                f"{cut} of {len(examples)} prompts ({cut / len(examples):.1%}) are longer than "
                f"TASK_FEATURE_LENGTHS['inputs'], {self.feature_lengths['inputs']}, and cut"
            )

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
                programs[architecture] = compiled(
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
