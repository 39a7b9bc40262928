"""A language model of a few kilobytes, random but for its answers: mostly "1" or "2"."""

from pathlib import Path

import numpy as np

WIDTH, HIDDEN, CONTEXT = 32, 64, 2048
ANSWERS = ("1", "2")


def write(path: Path, seed: int = 0) -> None:
    """Writes a one-layer LLaMA in the format of llama.cpp, with bytes and two digits as tokens."""
    import gguf

    special = ["<unk>", "<s>", "</s>"]
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *ANSWERS]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * 3
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int, scale: float, keeps_first: bool = False) -> None:
        found = rng.normal(0, scale, (rows, columns)).astype(np.float32)
        if keeps_first:
            found[0] = 0
        writer.add_tensor(name, found)

    # The first feature is the same everywhere, so that the answers' logits can be the largest.
    embedding = rng.normal(0, 1, (len(tokens), WIDTH)).astype(np.float32)
    embedding[:, 0] = 6
    output = rng.normal(0, 0.2, (len(tokens), WIDTH)).astype(np.float32)
    output[:, 0] = -2
    output[-2:] = rng.normal(0, 0.5, (2, WIDTH))
    output[-2:, 0] = 2
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for norm in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{norm}.weight", np.ones(WIDTH, np.float32))
    for name in ("q", "k", "v", "output"):
        matrix(f"blk.0.attn_{name}.weight", WIDTH, WIDTH, 0.3, name == "output")
    matrix("blk.0.ffn_gate.weight", HIDDEN, WIDTH, 0.2)
    matrix("blk.0.ffn_up.weight", HIDDEN, WIDTH, 0.2)
    matrix("blk.0.ffn_down.weight", WIDTH, HIDDEN, 0.2, True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
