"""Reading lessons, for networks that start from nothing: what of a response stands in the text.

A rater of summaries has to see what of a summary its text says, and a small network that starts
from random numbers finds that out late or, of a few thousand votes, never. It is what these lessons
teach, of any texts, with a right answer for every token; raters start from what has learned it.
"""

import jax
import jax.numpy as jnp

from nlhf_jax.learners.learner import Batch, Learner, Metrics, Rows, row_weights
from nlhf_jax.learners.state import Purpose, TrainState, key_for
from nlhf_jax.models.language_model import PyTree, SpecialTokens, logits_after, response_mask

_RESPONSES = 4  # to a text: reading that costs more than writing
_QUESTIONS = 2
_JUMP = 0.4  # of the responses that copy, at each token: 2.5 tokens a piece


class ReadingLearner(Learner):
    """Two questions at every token of a made-up response, which the first two logits answer.

    Does it stand in the text? Does it stand there right after the token before it? The responses
    are put together of the text and of another text of the batch, evenly, so that no token gives
    its answer away: word by word, or of short pieces.

    Batches: `inputs` int32 `[B, S]`, ending with EOS; `targets` int32 `[B, T]`, of which only the
    length T matters.
    """

    kind = "reading"

    def rows(self, state: TrainState, frozen: PyTree, batch: Batch) -> tuple[Rows, Metrics]:
        purpose, step = Purpose.READING, state.step
        if "valid" in batch:  # The same lessons at every evaluation.
            purpose, step = Purpose.EVALUATION, jnp.int32(0)
        key = key_for(self.key, step, purpose)
        if "batch_number" in batch:
            key = jax.random.fold_in(key, batch["batch_number"][0])
        texts, tokens = batch["inputs"], self.model.tokens
        responses = made_up(key, texts, _RESPONSES, batch["targets"].shape[1], tokens)
        rows = {
            "inputs": texts,
            "responses": responses,
            "answers": right_answers(texts, responses, tokens),
            "row_weights": row_weights(batch),
        }
        return rows | self.dropout_keys(state, batch), {}

    def loss(self, params: PyTree, frozen: PyTree, rows: Rows) -> tuple[jax.Array, Metrics]:
        model, responses, answers = self.with_dropout(rows), rows["responses"], rows["answers"]
        context = model.encode(params, rows["inputs"])
        said = logits_after(model, params, context, responses)
        wrong, right = lesson(said, responses, answers, self.model.tokens)
        weights = rows["row_weights"]
        loss = jnp.sum(weights * wrong)
        return loss, {"loss": loss} | {name: jnp.sum(weights * x) for name, x in right.items()}


def lesson(
    logits: jax.Array, responses: jax.Array, answers: jax.Array, tokens: SpecialTokens
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What answers cost and how many are right, float32 `[B]`: means over tokens.

    Args:
      logits: `[B, G, T, V]` after each token; the first two say yes or no.
      responses: `[B, G, T]`.
      answers: from `right_answers`.
      tokens: the network's special ones.

    Returns:
      The sum of both questions' cross-entropies in nats, and the shares of right answers.
    """
    said = logits[..., :_QUESTIONS]
    # EOS ends all and asks nothing; the first token has none before it.
    asked = response_mask(responses, tokens.eos) * (responses != tokens.eos)
    asked = jnp.stack([asked, asked.at[..., 0].set(0.0)], axis=-1)
    asked /= jnp.maximum(jnp.sum(asked, axis=(1, 2), keepdims=True), 1.0)
    wrong = jnp.sum(asked * jax.nn.softplus(jnp.where(answers, -said, said)), axis=(1, 2, 3))
    right = jnp.sum(asked * ((said > 0) == answers), axis=(1, 2))
    return wrong, {"in_text": right[:, 0], "in_order": right[:, 1]}


def made_up(
    key: jax.Array, texts: jax.Array, count: int, length: int, tokens: SpecialTokens
) -> jax.Array:
    """Responses of a text's tokens and of its neighbour's: int32 `[B, count, length]`.

    Those with an even number are put together token by token, the others of pieces. All end with
    EOS at their last place.

    Args:
      key: of everything that is drawn.
      texts: `[B, S]`, of at least one token each.
      count, length: see above.
      tokens: the network's special ones.
    """
    batch = texts.shape[0]
    shape = (batch, count, length)
    whose, where, jumps = jax.random.split(key, 3)
    pieces = jnp.arange(count)[None, :, None] % 2 == 1
    jump = ~pieces | jax.random.bernoulli(jumps, _JUMP, shape)
    position = jnp.arange(length)
    begun = jax.lax.cummax(jnp.where(jump, position, 0), axis=2)
    other = jnp.take_along_axis(jax.random.bernoulli(whose, 0.5, shape), begun, axis=2)
    both = jnp.stack([texts, jnp.roll(texts, 1, axis=0)], axis=1)  # [B, 2, S]
    sizes = jnp.sum((both != tokens.pad) & (both != tokens.eos), axis=2)  # [B, 2]
    size = jnp.take_along_axis(sizes[:, None], other.astype(jnp.int32), axis=2)
    drawn = jnp.take_along_axis(jax.random.uniform(where, shape), begun, axis=2)
    place = ((drawn * size).astype(jnp.int32) + position - begun) % size
    flat = both.reshape(batch, -1)
    index = other * texts.shape[1] + place
    found = jnp.take_along_axis(flat, index.reshape(batch, -1), axis=1).reshape(shape)
    return found.at[:, :, -1].set(tokens.eos)


def right_answers(texts: jax.Array, responses: jax.Array, tokens: SpecialTokens) -> jax.Array:
    """Whether each token stands in the text, and after the one before it: bool `[B, G, T, 2]`."""
    inside = (texts != tokens.pad) & (texts != tokens.eos)
    met = (responses[..., None] == texts[:, None, None]) & inside[:, None, None]  # [B, G, T, S]
    after = jnp.any(met[:, :, 1:, 1:] & met[:, :, :-1, :-1], axis=3)
    after = jnp.pad(after, ((0, 0), (0, 0), (1, 0)))
    return jnp.stack([jnp.any(met, axis=3), after], axis=-1)
