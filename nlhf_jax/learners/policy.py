"""The policy learner: Nash-MD-PG, Nash-EMA-PG, self-play, best response, RLHF, and IPO.

Munos et al. 2024, sec. 7: sample y from the policy and y' from an opponent, and ascend
`grad log pi(y) * (P(y > y') - 1/2 - tau log(pi(y) / mu(y)))`. The opponents differ; RLHF has a
reward in place of the preference and no opponent.

Calandriello et al. 2024: sample both y and y' from one player, the policy (online IPO) or Nash-MD's
mixture (IPO-MD), and regress the log ratio of the pair on its preference, with `losses.ipo`.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from nlhf_jax import losses
from nlhf_jax.errors import UserError
from nlhf_jax.learners.learner import Batch, Learner, Metrics, Rows, row_weights
from nlhf_jax.learners.state import Purpose, TrainState, key_for
from nlhf_jax.models.language_model import PyTree, response_mask, token_log_probs
from nlhf_jax.opponents import POLICY, Player
from nlhf_jax.raters import PreferenceModel, RewardModel
from nlhf_jax.rollout import rollout


class Scorer(Protocol):
    """Turns sampled responses into advantages, and compares two of them."""

    def advantages(
        self, params: PyTree, text: jax.Array, y: jax.Array, opponent: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """What multiplies the score of y, float32 `[B]`, without the KL; and its metrics."""

    def win_rate(self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array):
        """Probability that y is preferred to the other response, float32 `[B]`."""


@dataclasses.dataclass(frozen=True)
class PreferenceScorer:
    """P(y > y' | x) - 1/2; the 1/2 is the control variate of the paper."""

    rater: PreferenceModel
    both_orders: bool

    def advantages(self, params, text, y, opponent):
        probability = self.rater.probability(params, text, y, opponent, self.both_orders)
        return probability - 0.5, {"preference": jnp.mean(probability)}

    def win_rate(self, params, text, y, other):
        return self.rater.probability(params, text, y, other, both_orders=True)


@dataclasses.dataclass(frozen=True)
class RewardScorer:
    """The reward, centred by the other samples of the batch."""

    rater: RewardModel

    def advantages(self, params, text, y, opponent):
        rewards = self.rater.reward(params, text, y)
        return losses.leave_one_out_advantage(rewards), {"reward": jnp.mean(rewards)}

    def win_rate(self, params, text, y, other):
        return jax.nn.sigmoid(
            self.rater.reward(params, text, y) - self.rater.reward(params, text, other)
        )


class PolicyLearner(Learner):
    """Regularised policy gradient against an opponent, or IPO on pairs that the opponent writes.

    Batches: `inputs` int32 `[B, S]`, prompts ending with EOS. The state's `average` exists when the
    opponent is a moving average of past policies (Nash-EMA).

    Metrics `kl`, `log_ratio`, `entropy` and `response_length` are means over the responses y. Those
    are the policy's own, so that `kl` and `log_ratio` estimate KL(policy, reference), except in
    IPO's training from another player; its evaluation has the policy's.
    """

    kind = "policy"

    def __init__(
        self,
        *,
        opponent: Player | None,
        scorer: Scorer,
        reference_params: PyTree,
        scorer_params: PyTree,
        tau: float,
        kl: str | None,
        max_response_length: int,
        loss: str = "policy_gradient",
        average_decay: float | None = None,
        **learner: Any,
    ):
        """A learner that starts at the reference unless `initial_params` says otherwise.

        Args:
          opponent: a player of `nlhf_jax.opponents`, who writes y', and with IPO y too; None for
            RLHF, which has none.
          scorer: preference or reward.
          reference_params: mu, on the mesh; may be stored in bfloat16.
          scorer_params: of the rater, on the mesh; may be stored in bfloat16.
          tau: weight of KL(policy, reference), >= 0; of IPO's squared log ratio, > 0.
          kl: "sampled" log ratios as in the paper, or "exact" KL at every prefix; None for IPO,
            which has no such term.
          max_response_length: T, in tokens.
          loss: "policy_gradient" or "ipo".
          average_decay: beta of Nash-EMA in [0, 1]: avg = beta avg + (1 - beta) theta; needed by,
            and only by, a moving-average opponent.
          **learner: what `Learner` takes.
        """
        if loss not in ("policy_gradient", "ipo"):
            raise UserError(f"LOSS is {loss!r} but must be 'policy_gradient' or 'ipo'")
        if loss == "ipo":
            _check_ipo(opponent, scorer, tau, kl)
        elif kl not in ("sampled", "exact"):
            raise UserError(f"KL is {kl!r} but must be 'sampled' or 'exact'")
        if tau < 0:
            raise UserError(f"TAU is {tau} but must not be negative")
        averaging = opponent is not None and "average" in opponent
        if averaging and not (average_decay is not None and 0.0 <= average_decay <= 1.0):
            raise UserError(
                f"AVERAGE_DECAY is {average_decay} but a moving-average opponent needs it in [0, 1]"
            )
        learner.setdefault("initial_params", reference_params)
        super().__init__(
            frozen={"reference": reference_params, "scorer": scorer_params},
            with_average=averaging,
            **learner,
        )
        if loss == "ipo":
            self._players = [opponent, opponent]
        else:
            self._players = [POLICY] if opponent is None else [POLICY, opponent]
        # The gradient flows through the log-probabilities of this many of a prompt's responses.
        self._learned = 2 if loss == "ipo" else 1
        self._loss = loss
        self._scorer = scorer
        self._tau = tau
        self._kl = kl
        self._max_response_length = max_response_length
        self._average_decay = average_decay

    def rows(self, state: TrainState, frozen: PyTree, batch: Batch) -> tuple[Rows, Metrics]:
        key = key_for(self.seed, state.step, Purpose.ROLLOUT)
        responses = self._rollout(state, frozen, batch["inputs"], self._players, key)
        y = responses[:, 0]
        other = responses[:, 1] if len(self._players) == 2 else None
        with jax.named_scope("score"):
            advantages, metrics = self._scorer.advantages(
                frozen["scorer"], batch["inputs"], y, other
            )
        rows = {
            "inputs": batch["inputs"],
            "responses": responses[:, : self._learned],
            "advantages": advantages,
            "share": row_weights(batch),
        }
        return rows, metrics

    def loss(self, params: PyTree, frozen: PyTree, rows: Rows) -> tuple[jax.Array, Metrics]:
        inputs, responses, share = rows["inputs"], rows["responses"], rows["share"]
        advantages = rows["advantages"]
        mask = response_mask(responses)
        with jax.named_scope("reference"):
            reference_logits = self._logits(frozen["reference"], inputs, responses)
        with jax.named_scope("gradient"):
            logits = self._logits(params, inputs, responses)
            log_probs = token_log_probs(logits, responses)
            reference_log_probs = token_log_probs(reference_logits, responses)
            # Only IPO learns from y' too; what is said of the policy is said of its y.
            y_mask, y_log_probs = mask[:, 0], log_probs[:, 0]
            y_reference = reference_log_probs[:, 0]
            kl = losses.per_token_kl(logits[:, 0], reference_logits[:, 0])
            if self._loss == "ipo":
                loss = losses.ipo(
                    log_probs, reference_log_probs, advantages + 0.5, mask, share, self._tau
                )
            elif self._kl == "sampled":
                loss = losses.policy_gradient_sampled_kl(
                    y_log_probs, y_reference, advantages, y_mask, share, self._tau
                )
            else:
                loss = losses.policy_gradient_exact_kl(
                    y_log_probs, kl, advantages, y_mask, share, self._tau
                )
        per_row = {
            "kl": jnp.sum(kl * y_mask, axis=-1),
            "log_ratio": jnp.sum((y_log_probs - y_reference) * y_mask, axis=-1),
            "entropy": -jnp.sum(y_log_probs * y_mask, axis=-1),
            "response_length": jnp.sum(y_mask, axis=-1),
            "advantage_squared": jnp.square(advantages),
        }
        return loss, {"loss": loss} | {k: jnp.sum(share * v) for k, v in per_row.items()}

    def evaluate(self, state: TrainState, frozen: PyTree, batch: Batch) -> Metrics:
        """Against the reference, whoever the opponent in training is."""
        key = key_for(self.seed, state.step, Purpose.EVALUATION)
        players = [POLICY, {"reference": 1.0}]
        responses = self._rollout(state, frozen, batch["inputs"], players, key)
        y, other = responses[:, 0], responses[:, 1]
        share = row_weights(batch)
        win_rate = self._scorer.win_rate(frozen["scorer"], batch["inputs"], y, other)
        rows = {
            "inputs": batch["inputs"],
            "responses": responses[:, : self._learned],
            "advantages": win_rate - 0.5,
            "share": share,
        }
        _, metrics = self.loss(state.params, frozen, rows)
        return metrics | {"win_rate_over_reference": jnp.sum(share * win_rate)}

    def after_update(self, state: TrainState) -> TrainState:
        if state.average is None:
            return state
        average = jax.tree.map(
            lambda avg, new: self._average_decay * avg + (1.0 - self._average_decay) * new,
            state.average,
            state.params,
        )
        return state.replace(average=average)

    def _rollout(self, state, frozen, inputs, players, key) -> jax.Array:
        sets = {
            "policy": state.params,
            "reference": frozen["reference"],
            "average": state.average,
        }
        sets = {name: sets[name] for name in sets if any(name in player for player in players)}
        with jax.named_scope("rollout"):
            contexts = {name: self.model.encode(params, inputs) for name, params in sets.items()}
            return rollout(self.model, players, sets, contexts, key, self._max_response_length)

    def _logits(self, params: PyTree, inputs: jax.Array, responses: jax.Array) -> jax.Array:
        """Teacher-forced, `[B, S]` and `[B, G, T]` to `[B, G, T, V]`; a prompt is encoded once."""
        streams = responses.shape[1]
        # A prompt's responses are neighbours, so they stay on the device that has it.
        context = jax.tree.map(
            lambda x: jnp.repeat(x, streams, axis=0), self.model.encode(params, inputs)
        )
        logits = self.model.logits(params, context, responses.reshape(-1, responses.shape[-1]))
        return logits.reshape(*responses.shape, -1)


def _check_ipo(opponent: Player | None, scorer: Scorer, tau: float, kl: str | None) -> None:
    if opponent is None or isinstance(scorer, RewardScorer):
        raise UserError(
            "LOSS is 'ipo', which learns from preferences, but RLHF has rewards; set LOSS = "
            "'policy_gradient', or give an opponent and a preference model"
        )
    if kl is not None:
        raise UserError(
            f"KL is {kl!r} but LOSS = 'ipo' regularises by the squared log ratio of its pairs "
            "instead; set KL = None"
        )
    if tau <= 0:
        raise UserError(
            f"TAU is {tau} but LOSS = 'ipo' needs it positive: the log ratios that it regresses to "
            "are preferences divided by TAU"
        )
