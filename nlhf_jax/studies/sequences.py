"""Games whose actions are token sequences: all responses of a small language model, enumerated.

The policy learner of `nlhf_jax.learners.policy` can play them (`TableScorer`), and what it must
reach is known exactly (`fixed_point`). Letters: X prompts, S prompt tokens, N responses of at most
T tokens, V vocabulary.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from nlhf_jax import losses
from nlhf_jax.games import measures
from nlhf_jax.games.equilibrium import regularized_equilibrium
from nlhf_jax.games.game import Game
from nlhf_jax.models.language_model import (
    T5_TOKENS,
    LanguageModel,
    PyTree,
    SpecialTokens,
    response_mask,
    token_log_probs,
)
from nlhf_jax.opponents import Player

_STEP_SIZES = 16  # 1, 1/2, 1/4, ...


def responses(vocab_size: int, length: int, special: SpecialTokens = T5_TOKENS) -> np.ndarray:
    """Every response of at most `length` tokens, int32 `[N, T]`: up to and with EOS, then padding.

    All tokens but EOS count, padding too, since a model can sample it like any other. A response
    without EOS fills the whole length.
    """
    tokens = [t for t in range(vocab_size) if t != special.eos]
    found = [
        prefix + (special.eos,) + (special.pad,) * (length - n)
        for n in range(1, length + 1)
        for prefix in itertools.product(tokens, repeat=n - 1)
    ]
    return np.asarray(found + list(itertools.product(tokens, repeat=length)), np.int32)


def mixture_log_probs(
    model: LanguageModel,
    player: Player,
    param_sets: Mapping[str, PyTree],
    inputs: ArrayLike,
    all_responses: ArrayLike,
) -> jax.Array:
    """log p(response | prompt) under a player, float32 `[N]`, by teacher forcing mixed logits.

    Args:
      model: the architecture that all parameter sets share.
      player: weights over names in `param_sets`.
      param_sets: parameters by name.
      inputs: int32 `[S]`, one prompt.
      all_responses: int32 `[N, T]`.
    """
    prompt, all_responses = jnp.asarray(inputs), jnp.asarray(all_responses)
    repeated = jnp.broadcast_to(prompt, (len(all_responses), len(prompt)))
    mixed = jnp.float32(0.0)
    for name, weight in player.items():
        context = model.encode(param_sets[name], repeated)
        mixed += weight * model.logits(param_sets[name], context, all_responses)
    log_probs = token_log_probs(mixed, all_responses)
    return jnp.sum(log_probs * response_mask(all_responses, model.tokens.eos), axis=-1)


@dataclasses.dataclass(frozen=True)
class ResponseTree:
    """All responses of at most `length` tokens, as the leaves of the tree of their prefixes.

    Attributes:
      vocab_size: V.
      length: T.
      special: which of the tokens are padding and EOS.
    """

    vocab_size: int
    length: int
    special: SpecialTokens = T5_TOKENS

    @functools.cached_property
    def responses(self) -> np.ndarray:
        """int32 `[N, T]`, see `responses`; the order is that of all arrays over responses."""
        return responses(self.vocab_size, self.length, self.special)

    @property
    def size(self) -> int:
        """N."""
        return len(self.responses)

    def index(self, tokens: jax.Array) -> jax.Array:
        """The number of each response `[..., T]`, int32 `[...]`; what follows EOS is ignored."""
        mask = response_mask(tokens, self.special.eos)
        kept = jnp.where(mask > 0, tokens, self.special.pad)
        return jnp.asarray(self._index_of_code)[kept @ self._place_values]

    @functools.cached_property
    def _place_values(self) -> np.ndarray:
        return (self.vocab_size ** np.arange(self.length)).astype(np.int32)

    @functools.cached_property
    def _index_of_code(self) -> np.ndarray:
        """From tokens read as digits to base V; only codes of responses occur."""
        table = np.full(self.vocab_size**self.length, -1, np.int32)
        table[self.responses @ self._place_values] = np.arange(self.size)
        return table

    @functools.cached_property
    def _levels(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each token, the last one first: which nodes it joins.

        The nodes of depth n are the prefixes of n tokens; a response that has ended goes on as a
        single node to the last depth, where the nodes are the responses.

        Returns:
          Of depth n: the children of its nodes `[nodes of n, V]`, missing ones as -1 (which is
          where `_log_sum_of_children` puts log 0); the parent of every node of depth n + 1; and the
          node of depth n + 1 on the way to every response `[N]`.
        """
        levels, nodes = [], np.arange(self.size)
        for depth in reversed(range(self.length)):
            _, first = np.unique(nodes, return_index=True)
            _, above = np.unique(self.responses[:, :depth], axis=0, return_inverse=True)
            parents, last_tokens = above[first], self.responses[first, depth]
            children = np.full((above.max() + 1, self.vocab_size), -1)
            children[parents, last_tokens] = np.arange(len(first))
            levels.append((children, parents, nodes))
            nodes = above
        return levels

    def mixture(self, player: Player, log_probs: Mapping[str, jax.Array]) -> jax.Array:
        """The player's log-probabilities of all responses: what `mixture_log_probs` is of networks.

        At every prefix the next tokens' probabilities are multiplied, each to the power of its
        weight, and normalised. With Z(prefix) that normaliser, the result m is, of the sequence's
        geometric mixture,

            log m(y) = sum over policies of weight * log pi(y) - sum over prefixes of y of log Z.

        The first sum alone, normalised once, is `measures.geometric_mixture`. Weights of sum 1 have
        Z <= 1 (Hoelder), the smaller the more the policies disagree there, so m visits prefixes
        after which they disagree more often than the geometric mixture does: that one looks ahead.
        They are the same at T = 1.

        Args:
          player: weights over names in `log_probs`.
          log_probs: log-probabilities of each policy, `[..., N]`.
        """
        at_depth = {name: log_probs[name] for name in player}
        mixed: Any = 0.0
        for children, parents, nodes in self._levels:
            above = {name: _log_sum_of_children(p, children) for name, p in at_depth.items()}
            token: Any = sum(
                weight * (at_depth[name] - above[name][..., parents])
                for name, weight in player.items()
            )
            token -= _log_sum_of_children(token, children)[..., parents]
            mixed = mixed + token[..., nodes]
            at_depth = above
        return mixed


def _log_sum_of_children(log_probs: jax.Array, children: np.ndarray) -> jax.Array:
    """`[..., nodes below]` to `[..., nodes]`."""
    absent = jnp.full((*log_probs.shape[:-1], 1), -jnp.inf, log_probs.dtype)
    padded = jnp.concatenate([log_probs, absent], axis=-1)
    return jax.nn.logsumexp(padded[..., children], axis=-1)


@dataclasses.dataclass(frozen=True)
class TableScorer:
    """P(y > y' | x) from a table: a `Scorer` of the policy learner.

    The scorer's parameters are the table, float32 `[X, N, N]`. A text that is none of the prompts
    scores NaN.

    Attributes:
      tree: whose responses the table compares.
      prompts: int32 `[X, S]`, all different.
    """

    tree: ResponseTree
    prompts: np.ndarray
    measures = "preference"
    pairwise = True

    def score(
        self, params: jax.Array, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> jax.Array:
        assert other is not None
        return self.win_rate(params, text, y, other)

    def advantages(self, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return losses.centred_preference(scores, row_weights)

    def win_rate(
        self, params: jax.Array, text: jax.Array, y: jax.Array, other: jax.Array
    ) -> jax.Array:
        same = jnp.all(text[:, None] == self.prompts, axis=-1)
        prompt = jnp.argmax(same, axis=-1)
        probability = params[prompt, self.tree.index(y), self.tree.index(other)]
        return jnp.where(jnp.any(same, axis=-1), probability, jnp.nan)


@flax.struct.dataclass
class FixedPoint:
    """Where a learner stays: the best response to what its opponent then is.

    Attributes:
      log_policy: `[X, N]`.
      residual: `[X]`, the largest difference in nats between log_policy and that best response.
    """

    log_policy: jax.Array
    residual: jax.Array


@functools.partial(jax.jit, static_argnames=("tree", "max_iterations"))
def fixed_point(
    game: Game, tree: ResponseTree, beta: float, max_iterations: int = 100
) -> FixedPoint:
    """`pi(y) ∝ mu(y) exp(P(y > m) / tau)`, m the token-level mixture of `1 - beta` pi, `beta` mu.

    That is where the learner's gradient vanishes if the network can be any policy. At beta = 0 it
    is the equilibrium (self-play, Nash-EMA), at beta = 1 the best response to mu. Between, the
    geometric mixture of whole sequences would have m the equilibrium at `tau / (1 - beta)`
    (Calandriello et al. 2024, prop. 5.2), and pi the best response to it. The token-level mixture
    has a fixed point close to that one, from which Newton's method starts here; no theorem says
    that there is no other.

    Args:
      game: its actions are the responses of the tree; tau > 0.
      tree: see above.
      beta: weight of the reference in the opponent, in [0, 1].
      max_iterations: of Newton's method; some five are usual.
    """
    player = {"policy": 1.0 - beta, "reference": beta}
    start = regularized_equilibrium(
        dataclasses.replace(game, tau=game.tau / (1.0 - beta))
    ).log_policy
    start = measures.best_response(game, start)
    steps = 0.5 ** jnp.arange(_STEP_SIZES, dtype=start.dtype)

    def of_context(preference, log_reference, log_start):
        def difference(log_policy):
            opponent = tree.mixture(player, {"policy": log_policy, "reference": log_reference})
            won = (preference - 0.5) @ jnp.exp(opponent)
            return log_policy - measures.normalize(log_reference + won / game.tau)

        def residual(log_policy):
            return jnp.max(jnp.abs(difference(log_policy)))

        def improve(state):
            log_policy, least, iteration, _ = state
            newton = jnp.linalg.solve(jax.jacobian(difference)(log_policy), difference(log_policy))
            candidates = measures.normalize(log_policy - steps[:, None] * newton)
            residuals = jax.vmap(residual)(candidates)
            chosen = jnp.nanargmin(residuals)
            better = residuals[chosen] < least
            log_policy = jnp.where(better, candidates[chosen], log_policy)
            return log_policy, jnp.where(better, residuals[chosen], least), iteration + 1, better

        def unfinished(state):
            return state[3] & (state[2] < max_iterations)

        state = (log_start, residual(log_start), jnp.int32(0), jnp.bool_(True))
        return jax.lax.while_loop(unfinished, improve, state)[:2]

    return FixedPoint(*jax.vmap(of_context)(game.preference, game.log_reference, start))
