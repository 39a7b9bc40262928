"""The preference embedding: a vector for each response, which may hold a cycle and a reward."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nlhf_jax.models.language_model import PyTree, logits_after, response_mask
from nlhf_jax.raters.rater import Rater

# Of the tokens' rewards an eighth is added up: of a few tens of tokens they are of a size with what
# one logit is.
_TOKENS = 8.0


@dataclasses.dataclass(frozen=True)
class PreferenceEmbedding(Rater):
    """Votes by vectors (Zhang et al. 2024): s(y > y') = r(y) - r(y') + <R v(y), v(y')>.

    The network reads the text as a prompt and the response as what it wrote. At every token of the
    response, EOS included, it gives 1 + 2 k numbers, its last logits: the first is a reward, and
    r(y) an eighth of the sum over tokens; v(y) is the mean of the other 2 k. R turns each of the k
    planes by a right angle, so that <R v, v'> = -<R v', v>: what is preferred in circles. The
    reward is beside it so that a dominant answer and a cycle fit together, and because the circular
    part alone would start at a saddle.

    One pass a response: all pairs of K responses cost K.
    """

    cyclic: int  # k, planes in which preferences may go in circles; 0 is a reward model
    kind = "embedding"

    @property
    def size(self) -> int:
        """Numbers of a response's embedding, 1 + 2 k."""
        return 1 + 2 * self.cyclic

    def description(self) -> dict[str, Any]:
        return {"cyclic": self.cyclic}

    def embed(self, params: PyTree, text: jax.Array, responses: jax.Array) -> jax.Array:
        """r and v of responses `[B, G, T]` to texts `[B, S]`: float32 `[B, G, 1 + 2 k]`."""
        context = self.model.encode(params, text)
        return self.pool(logits_after(self.model, params, context, responses), responses)

    def pool(self, logits: jax.Array, responses: jax.Array) -> jax.Array:
        """r and v `[B, G, 1 + 2 k]` from the logits `[B, G, T, V]` after each token."""
        numbers = logits[..., -self.size :]
        mask = response_mask(responses, self.model.tokens.eos)
        total = jnp.sum(numbers * mask[..., None], axis=2)
        mean = total / jnp.sum(mask, axis=2)[..., None]
        return jnp.concatenate([total[..., :1] / _TOKENS, mean[..., 1:]], axis=-1)

    @property
    def rewards(self) -> bool:
        """Without planes it is its reward."""
        return not self.cyclic

    def reward(self, params: PyTree, text: jax.Array, response: jax.Array) -> jax.Array:
        """r alone, float32 `[B]`, from `[B, S]` and `[B, T]`."""
        return self.embed(params, text, response[:, None])[:, 0, 0]

    def compare(self, one: jax.Array, other: jax.Array) -> jax.Array:
        """Logits of P(one > other), `[...]`, from embeddings `[..., 1 + 2 k]` of JAX or NumPy."""
        circular = one[..., 1::2] * other[..., 2::2] - one[..., 2::2] * other[..., 1::2]
        return one[..., 0] - other[..., 0] + circular.sum(axis=-1)

    def logit(
        self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array
    ) -> jax.Array:
        embedded = self.embed(params, text, jnp.stack([first, second], axis=1))
        return self.compare(embedded[:, 0], embedded[:, 1])

    def against(
        self,
        params: PyTree,
        text: jax.Array,
        y: jax.Array,
        others: jax.Array,
        both_orders: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """As `Rater.against`, in K + 1 passes a row."""
        embedded = self.embed(params, text, jnp.concatenate([y[:, None], others], axis=1))
        logits = self.compare(embedded[:, :1], embedded[:, 1:])
        return logits, -logits

    def all_pairs(self, params: PyTree, text: jax.Array, responses: jax.Array) -> jax.Array:
        """P(y_i > y_j | text) of responses `[B, K, T]`, float32 `[B, K, K]`, in K passes."""
        embedded = self.embed(params, text, responses)
        one, other = jnp.broadcast_arrays(embedded[:, :, None], embedded[:, None, :])
        return jax.nn.sigmoid(self.compare(one, other))
