"""The policy learner: Nash-MD-PG, its relatives, RLHF, and learners from pairs.

The policy and an opponent write responses, a scorer says what they are worth, and an objective
makes a loss of that: see `nlhf_jax.opponents`, `nlhf_jax.raters` and `nlhf_jax.objectives`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlhf_jax import losses
from nlhf_jax.errors import UserError
from nlhf_jax.learners.learner import (
    Batch,
    Learner,
    Metrics,
    Rows,
    accumulate_gradients,
    row_weights,
)
from nlhf_jax.learners.state import Purpose, TrainState, key_for
from nlhf_jax.models.language_model import (
    PyTree,
    encode_once,
    encoded,
    logits_of_streams,
    response_mask,
    token_log_probs,
)
from nlhf_jax.objectives import Objective, Scored, anchor_of
from nlhf_jax.opponents import LOOKAHEAD, POLICY, REFERENCE, Opponent, Player
from nlhf_jax.raters import Scorer, score_against, score_and_more
from nlhf_jax.rollout import rollout
from nlhf_jax.sharding import map_batch

Players = Sequence[Player]  # y's, and that of each y'


class PolicyLearner(Learner):
    """Improves a policy against an opponent, or, without one, a reward (RLHF).

    Batches: `inputs` int32 `[B, S]`, prompts ending with EOS.

    Metrics `kl`, `log_ratio`, `entropy` and `response_length` are means over the responses y. Those
    are the policy's own, so that `kl` and `log_ratio` estimate KL(policy, reference), except in
    IPO's training from another player; its evaluation has the policy's.
    """

    kind = "policy"
    # Gives what `checkpoints.describe` says of its rater; None if nobody knows.
    trained_against: Callable[[], Mapping[str, Any]] | None = None

    def __init__(
        self,
        *,
        opponent: Opponent | None,
        objective: Objective,
        scorer: Scorer,
        reference_params: Callable[[str], PyTree],
        scorer_params: PyTree,
        max_response_length: int,
        frozen_dtype: str = "float32",
        **learner: Any,
    ):
        """A learner that starts at the reference unless `initial_params` says otherwise.

        Args:
          opponent: of `nlhf_jax.opponents`; None for RLHF, which has none.
          objective: of `nlhf_jax.objectives`.
          scorer: of `nlhf_jax.raters`.
          reference_params: reads mu: from a dtype to what the model's `frozen_params` are in it, on
            the mesh. Where training starts at mu, in float32, it is read once; where it continues,
            in `frozen_dtype`.
          scorer_params: what the scorer reads, on the mesh; may be stored in bfloat16.
          max_response_length: T, in tokens.
          frozen_dtype: in which mu is stored, "float32" or "bfloat16".
          **learner: what `Learner` takes.

        Raises:
          UserError: opponent, objective and scorer do not go together.
        """
        self._keeps = dict(opponent.keeps) if opponent is not None else {}
        self._evaluated = REFERENCE if opponent is None else opponent.evaluated
        self._players = objective.players(None if opponent is None else opponent.weights, scorer)
        self._looks_ahead = any(LOOKAHEAD in player for player in self._players)
        self._objective = objective
        self._anchor = anchor_of(objective)
        self._scorer = scorer
        self.max_response_length = max_response_length
        self._reference_params = reference_params
        self._scorer_params = scorer_params
        self._frozen_dtype = frozen_dtype
        learner.setdefault("initial_params", self._start_at_reference)
        super().__init__(kept=self._keeps, **learner)
        self._check_kept_sets()

    @functools.cached_property
    def _frozen(self) -> PyTree:
        # A run that continues reads it before its first step, and steps have a transfer guard.
        with jax.transfer_guard("allow"):
            reference = self._reference_params(self._frozen_dtype)
        return {"reference": reference, "scorer": self._scorer_params}

    def _start_at_reference(self) -> PyTree:
        """mu in float32; the frozen one is a cast of it, since what is trained has to be whole."""
        start = self._reference_params("float32")

        def freeze(params: PyTree) -> PyTree:  # Copies: `start` becomes the state's.
            return self.model.frozen_params(jax.tree.map(jnp.copy, params), self._frozen_dtype)

        freeze_on_device = jax.jit(freeze, out_shardings=self._factory.params_sharding)
        self._frozen = {"reference": freeze_on_device(start), "scorer": self._scorer_params}
        return start

    def rows(self, state: TrainState, frozen: PyTree, batch: Batch) -> tuple[Rows, Metrics]:
        purpose = Purpose.ROLLOUT
        if self._looks_ahead:
            ahead = {LOOKAHEAD: self._look_ahead(state, frozen, batch)}
            state, purpose = state.replace(kept=state.kept | ahead), Purpose.AGAINST_LOOKAHEAD
        return self._play(state, frozen, batch, self._players, purpose)[:2]

    @jax.named_scope("lookahead")
    def _look_ahead(self, state: TrainState, frozen: PyTree, batch: Batch) -> PyTree:
        """The policy after a step of self-play; nothing else of that step is kept."""
        players = [POLICY if LOOKAHEAD in player else player for player in self._players]
        rows = self._play(state, frozen, batch, players, Purpose.ROLLOUT)[0]
        gradient, _ = accumulate_gradients(
            lambda params, rows: self.loss(params, self.loss_reads(state, frozen), rows),
            state.params,
            jax.lax.stop_gradient(rows),
            self._microbatches,
        )
        updates, _ = self._factory.optimizer.update(gradient, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates)

    def loss_reads(self, state: TrainState, frozen: PyTree) -> PyTree:
        return frozen | {name: state.kept[name] for name in self._anchor if name != "reference"}

    def loss(self, params: PyTree, frozen: PyTree, rows: Rows) -> tuple[jax.Array, Metrics]:
        inputs, responses, before = rows["inputs"], rows["responses"], rows.get("policy")
        read = functools.partial(logits_of_streams, self.model)
        with jax.named_scope("reference"):
            fixed = {name: read(frozen[name], x, responses) for name, x in rows["contexts"].items()}
        with jax.named_scope("gradient"):
            logits = read(params, encoded(self.model, params, inputs, before), responses)
            of_fixed = {name: token_log_probs(x, responses) for name, x in fixed.items()}
            kls = {name: losses.per_token_kl(logits[:, 0], x[:, 0]) for name, x in fixed.items()}
            scored = Scored(
                responses=responses,
                mask=response_mask(responses, self.model.tokens.eos),
                logits=logits,
                reference_logits=fixed["reference"],
                log_probs=token_log_probs(logits, responses),
                reference_log_probs=of_fixed["reference"],
                kl=kls["reference"],
                anchor_log_probs=_weighted(self._anchor, of_fixed),
                anchor_kl=_weighted(self._anchor, kls),
                targets=rows["targets"],
                row_weights=rows["row_weights"],
            )
            loss = self._objective.loss(scored)
        return loss, {"loss": loss} | _about_first_response(scored)

    def evaluate(self, state: TrainState, frozen: PyTree, batch: Batch) -> Metrics:
        """Against the reference, or whom else the opponent is to be evaluated by."""
        players = [POLICY, self._evaluated]
        rows, metrics, (y, other) = self._play(state, frozen, batch, players, Purpose.EVALUATION)
        assert other is not None
        win_rate = map_batch(
            lambda texts: self._scorer.win_rate(frozen["scorer"], *texts),
            (rows["inputs"], y, other),
            self._microbatches,
        )
        metrics |= self.loss(state.params, self.loss_reads(state, frozen), rows)[1]
        if self._scorer.pairwise:  # In training it is the opponent's.
            del metrics[self._scorer.measures]
        name = f"win_rate_over_{'_'.join(self._evaluated)}"
        return metrics | {name: jnp.sum(rows["row_weights"] * win_rate)}

    def follow(self, state: TrainState) -> TrainState:
        kept = {
            name: follow(state.kept[name], state.params, state.step)
            for name, follow in self._keeps.items()
        }
        return state.replace(kept=state.kept | kept)

    def _play(
        self, state: TrainState, frozen: PyTree, batch: Batch, players: Players, purpose: Purpose
    ) -> tuple[Rows, Metrics, tuple[jax.Array, jax.Array | None]]:
        """Responses and what they are worth: rows for the loss, metrics, y and y'."""
        with jax.named_scope("rollout"):
            sets = parameter_sets(state, frozen)
            contexts, read = self.read(sets, batch, players)
            key = key_for(self.key, state.step, purpose)
            if "batch_number" in batch:  # One of several that this step is evaluated on.
                key = jax.random.fold_in(key, batch["batch_number"][0])
            responses = rollout(self.model, players, sets, contexts, key, self.max_response_length)
        with jax.named_scope("score"):
            rows, metrics = self.rate(frozen, batch, responses)
        y, other = responses[:, 0], responses[:, 1] if len(players) > 1 else None
        return rows | read, metrics, (y, other)

    # --- the parts of a rollout, which `nlhf benchmark` runs one by one ---

    @property
    def players(self) -> Players:
        """Those of training."""
        return self._players

    @property
    def anchors(self) -> tuple[str, ...]:
        """Parameter sets whose logits the loss reads beside the policy's: of their `contexts`."""
        return tuple(dict.fromkeys(("reference", *self._anchor)))

    def read(self, sets: Mapping[str, PyTree], batch: Batch, players: Players) -> tuple[Rows, Rows]:
        """What encoders make of the prompts, by parameter set; and the loss' rows of that."""
        policy, pullback = encode_once(self.model, sets["policy"], batch["inputs"])
        others = sorted(set(self.anchors).union(*players) - {"policy"})
        contexts = {name: self.model.encode(sets[name], batch["inputs"]) for name in others}
        rows: Rows = {"contexts": {name: contexts[name] for name in self.anchors}}
        if self._microbatches == 1:  # A part of the batch could not use the whole's pullback.
            rows["policy"] = policy, pullback
        return contexts | {"policy": policy}, rows

    def rate(self, frozen: PyTree, batch: Batch, responses: jax.Array) -> tuple[Rows, Metrics]:
        """What responses `[B, G, T]`, y's first, are worth: the loss' rows without `read`'s."""
        inputs, weights = batch["inputs"], row_weights(batch)
        y, other = responses[:, 0], responses[:, 1] if responses.shape[1] > 1 else None
        several = responses.shape[1] > 2  # of the opponent's
        ask, others = (score_against, responses[:, 1:]) if several else (score_and_more, other)
        ask = functools.partial(ask, self._scorer, frozen["scorer"])
        scores, more = map_batch(lambda x: ask(*x), (inputs, y, others), self._microbatches)
        advantages = self._scorer.advantages(scores, weights)
        rows = {
            "inputs": inputs,
            "responses": responses[:, : self._objective.learned],
            "targets": self._objective.targets(self._scorer, scores, weights),
            "row_weights": weights,
        }
        metrics = {
            self._scorer.measures: jnp.sum(weights * scores),
            "advantage_squared": jnp.sum(weights * jnp.square(advantages)),
        } | {name: jnp.sum(weights * values) for name, values in more.items()}
        return rows, metrics

    def _check_kept_sets(self) -> None:
        for name in self._anchor:
            if name not in ("reference", *self._keeps):
                raise UserError(
                    f"the objective measures from the parameter set {name!r} but the opponent "
                    f"keeps none of that name; it keeps {', '.join(self._keeps) or 'none'}"
                )
        state = self.abstract_state()
        for name, follow in self._keeps.items():
            found = jax.eval_shape(follow, state.kept[name], state.params, state.step)
            shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in (found, state.params)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"the opponent's parameter set {name!r} changes its shapes or dtypes when it "
                    "follows the policy: return arrays like the parameters"
                )


def parameter_sets(state: TrainState, frozen: PyTree) -> dict[str, PyTree]:
    """By the names that players and opponents give them."""
    return {"policy": state.params, "reference": frozen["reference"]} | state.kept


def _weighted(anchor: Player, of_sets: Mapping[str, jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, [weight * of_sets[name] for name, weight in anchor.items()])


def _about_first_response(scored: Scored) -> Metrics:
    """What is said of the policy is said of its y; only IPO learns from y' too."""
    mask, log_probs = scored.mask[:, 0], scored.log_probs[:, 0]
    per_row = {
        "kl": jnp.sum(scored.kl * mask, axis=-1),
        "log_ratio": jnp.sum((log_probs - scored.reference_log_probs[:, 0]) * mask, axis=-1),
        "entropy": -jnp.sum(log_probs * mask, axis=-1),
        "response_length": jnp.sum(mask, axis=-1),
    }
    return {name: jnp.sum(scored.row_weights * values) for name, values in per_row.items()}
