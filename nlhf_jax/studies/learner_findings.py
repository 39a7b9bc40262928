"""A finding about the main job's policy learner: does it reach what the game says it must?"""

from collections.abc import Mapping

import jax
import numpy as np

from nlhf_jax import opponents
from nlhf_jax.games import families, measures
from nlhf_jax.games.equilibrium import regularized_equilibrium
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.report import game_plots
from nlhf_jax.report.findings import Finding
from nlhf_jax.report.game_plots import Line, Panel
from nlhf_jax.report.plots import png
from nlhf_jax.studies.sequence_learning import (
    Learning,
    SequenceGame,
    learn,
    random_reference,
    sequence_game,
    without_padding_inside,
)
from nlhf_jax.studies.sequences import ResponseTree

_MEASURES = {
    "kl": "KL(π*, π) in nats",
    "regularized_exploitability": "exploitability, regularised",
    "exploitability": "exploitability, plain",
    "kl_to_fixed_point": "KL(own fixed point, π) in nats",
}


def random_sequence_game(
    seed: int, vocab_size: int, length: int, scale: float, tau: float, prompts: int = 2
) -> SequenceGame:
    """A purely cyclic random P over the responses of a small T5, which SFT made the reference.

    Responses with padding inside, which `random_reference` leaves out, tie with all others.

    Args:
      seed: of P and of the reference.
      vocab_size: V, with padding (0) and EOS (1).
      length: T, of the longest responses.
      scale: root mean square of P's logits.
      tau: of the regularisation.
      prompts: X, at most V - 2.
    """
    with jax.enable_x64(False):
        model = T5(
            T5Config(
                vocab_size=vocab_size,
                emb_dim=32,
                num_heads=4,
                head_dim=8,
                mlp_dim=64,
                num_encoder_layers=1,
                num_decoder_layers=2,
            )
        )
    special = model.tokens
    texts = np.array([[token, special.eos] for token in range(2, 2 + prompts)], np.int32)
    tree = ResponseTree(vocab_size, length, special)
    proper = without_padding_inside(tree.responses, special)
    cyclic = families.random_game(seed, int(proper.sum()), contexts=prompts, scale=scale)
    preference = np.full((prompts, tree.size, tree.size), 0.5)
    preference[np.ix_(np.ones(prompts, bool), proper, proper)] = cyclic.preference
    reference = random_reference(model, texts, length=length, seed=seed, spread=1.0)
    return sequence_game(model, reference, texts, preference, length=length, tau=tau)


def policy_learners(
    run: str = "notebook",
    seed: int = 0,
    vocab_size: int = 5,
    length: int = 3,
    scale: float = 6.0,
    tau: float = 0.1,
    beta: float = 0.25,
    average_decay: float = 0.95,
    steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    records: int = 20,
) -> Finding:
    """SP, MD, BR and EMA train a small T5 on a random cyclic game over all its responses.

    Args:
      run: named in the figure.
      seed, vocab_size, length, scale, tau: of the game, see `random_sequence_game`.
      beta: weight of the reference in Nash-MD-PG's opponent.
      average_decay: of Nash-EMA-PG.
      steps: of each learner, a multiple of `records`.
      batch_size, learning_rate: of each learner, see `learn`.
      records: how often the exact policy is measured.
    """
    game = random_sequence_game(seed, vocab_size, length, scale, tau)
    players = {
        "SP": opponents.self_play(),
        f"MD, β = {beta}": opponents.geometric_mixture(beta),
        "BR": opponents.best_response(),
        "EMA": opponents.moving_average(average_decay),
    }
    learned = {
        name: learn(
            game,
            opponent,
            steps=steps,
            record_every=steps // records,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        for name, opponent in players.items()
    }
    return Finding(
        "policy_learners",
        "The policy learner on a game of token sequences",
        _text(learned, game, steps),
        png(
            game_plots.panels(
                f"{game.tree.size} responses, random cyclic P, τ = {tau}",
                [
                    [_panel(learned, "kl"), _panel(learned, "kl_to_fixed_point")],
                    [
                        _panel(learned, "regularized_exploitability"),
                        _panel(learned, "exploitability"),
                    ],
                ],
                run,
            )
        ),
        _numbers(learned),
        [
            ["first → last", *_MEASURES.values()],
            *(
                [name, *(_first_and_last(found.metrics["last"][measure]) for measure in _MEASURES)]
                for name, found in learned.items()
            ),
        ],
    )


def _numbers(learned: Mapping[str, Learning]) -> dict[str, dict]:
    return {
        name: {"steps": found.steps.tolist()}
        | {
            policy: {measure: values.tolist() for measure, values in of.items()}
            for policy, of in found.metrics.items()
        }
        for name, found in learned.items()
    }


def _panel(learned: Mapping[str, Learning], measure: str) -> Panel:
    lines = [
        Line(name, found.steps, found.metrics["last"][measure]) for name, found in learned.items()
    ]
    log = "" if measure == "exploitability" else "y"
    return Panel(
        _MEASURES[measure].partition(" in ")[0], lines, "training step", _MEASURES[measure], log
    )


def _first_and_last(values) -> str:
    return f"{values[0]:.2g} → {values[-1]:.2g}"


def _text(learned: Mapping[str, Learning], game: SequenceGame, steps: int) -> str:
    moved = ", ".join(
        f"{name} {_first_and_last(found.metrics['last']['kl_to_fixed_point'])}"
        for name, found in learned.items()
    )
    equilibrium = regularized_equilibrium(game.game).log_policy
    return (
        f"A T5 over {game.tree.vocab_size} tokens and {game.tree.length} positions has"
        f" {game.tree.size} responses; P is random and purely cyclic on those without padding"
        f" inside. Real SFT, rollouts and optimiser, {steps:,} steps. KL to the fixed point of each"
        f" algorithm, in nats: {moved}. SP and EMA must end at the equilibrium π*, MD near it, BR"
        " at the best response to the reference. The plain exploitability of π* itself is"
        f" {measures.exploitability(game.game, equilibrium):.2g}."
    )
