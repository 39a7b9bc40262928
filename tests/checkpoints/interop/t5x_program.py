"""What T5X computes from a checkpoint: a program of its own, on one device and with T5X alone.

`python t5x_program.py CHECKPOINT CONFIG BATCH OUTPUT`: restores as T5X's infer.py does, and writes
logits and greedy decodes of the batch (`.npz`) for a model (`.json`, settings of T5X's T5Config).
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import seqio
from t5x import decoding, models, partitioning, utils
from t5x.examples.t5 import network


def main(checkpoint: str, config: str, batch: str, output: str) -> None:
    with open(config) as file:
        settings = network.T5Config(**json.load(file))
    vocabulary = seqio.PassThroughVocabulary(size=settings.vocab_size, eos_id=1)
    model = models.EncoderDecoderModel(
        module=network.Transformer(config=settings),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        optimizer_def=None,
        decode_fn=decoding.temperature_sample,
    )
    tokens = {name: jnp.asarray(array) for name, array in np.load(batch).items()}
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    state, _ = utils.create_checkpoint_manager_and_restore(
        utils.TrainStateInitializer(
            optimizer_def=None,
            init_fn=model.get_initial_variables,
            input_shapes={name: array.shape for name, array in tokens.items()},
            input_types=dict.fromkeys(tokens, jnp.int32),
            partitioner=partitioner,
        ),
        partitioner,
        utils.RestoreCheckpointConfig(path=checkpoint, mode="specific", dtype="float32"),
        checkpoint,
        jax.random.PRNGKey(0),
        use_orbax=True,
    )
    logits = model._compute_logits(state.params, tokens)
    decodes, _ = model.predict_batch_with_aux(
        state.params,
        tokens,
        rng=jax.random.PRNGKey(0),
        decoder_params={"temperature": 0.0, "rescale_log_probs": False},
    )
    logits = logits[0] if isinstance(logits, tuple) else logits
    np.savez(output, step=state.step, logits=logits, decodes=decodes)


if __name__ == "__main__":
    main(*sys.argv[1:])
