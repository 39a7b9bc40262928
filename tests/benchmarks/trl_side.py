"""TRL's side of `against_trl.py`: its `NashMDTrainer` with a Llama."""

import copy
import tempfile

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl.experimental.nash_md import NashMDConfig, NashMDTrainer, nash_md_trainer
from trl.experimental.nash_md.nash_md_trainer import GeometricMixtureWrapper
from work import (
    ADAM_BETAS,
    ADAM_EPSILON,
    BETA,
    CLIP_NORM,
    END,
    FIRST_WORD,
    LEARNING_RATE,
    PAD,
    PRODUCT,
    TAU,
    Turns,
    Work,
    product_gflops,
    run_side,
)

ROWS = 4096  # of the dataset; it goes round


def network(work: Work) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=work.vocabulary,
        hidden_size=work.width,
        intermediate_size=work.causal_mlp,
        num_hidden_layers=work.layers,
        num_attention_heads=work.heads,
        max_position_embeddings=work.prompt + work.response,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
        num_labels=1,
    )


def tokenizer(work: Work) -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<end>": END}
    words |= {f"w{n}": n for n in range(FIRST_WORD, work.vocabulary)}
    whole = Tokenizer(WordLevel(words, unk_token="<pad>"))
    whole.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def prompts(work: Work) -> Dataset:
    rng = np.random.default_rng(0)
    drawn = rng.integers(FIRST_WORD, work.vocabulary, (ROWS, work.prompt))
    return Dataset.from_dict({"prompt": [" ".join(f"w{n}" for n in row) for row in drawn]})


def config(work: Work, directory: str) -> NashMDConfig:
    return NashMDConfig(
        output_dir=directory,
        mixture_coef=BETA,
        beta=TAU,
        per_device_train_batch_size=work.batch,
        max_new_tokens=work.response,
        max_length=work.prompt + work.response + 1,  # It warns of an equal one.
        temperature=1.0,
        generation_kwargs={"min_new_tokens": work.response},
        max_steps=10**6,
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=ADAM_BETAS[0],
        adam_beta2=ADAM_BETAS[1],
        adam_epsilon=ADAM_EPSILON,
        max_grad_norm=CLIP_NORM,
        bf16=work.precision == "bfloat16",
        use_cpu=work.device == "cpu",
        # By default it computes activations twice and has no cache in generation, to save memory.
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=work.device == "cuda",
    )


class InTurns(TrainerCallback):
    """Lets the trainer wait between its steps; the fetching of a batch is in the step's time."""

    def __init__(self, turns: Turns, work: Work, about: dict):
        self._turns, self._work, self._about = turns, work, about

    def on_train_begin(self, args, state, control, **_):
        control.should_training_stop = not self._turns.ready(self._about)

    def on_step_end(self, args, state, control, **_):
        if self._work.device == "cuda":
            torch.cuda.synchronize()
        control.should_training_stop = not self._turns.done()


class TwoCaches(GeometricMixtureWrapper):
    """With a cache for the reference beside the policy's; TRL's has both write into one."""

    _of_reference: DynamicCache

    @torch.inference_mode()
    def forward(self, *args, cache, **kwargs):
        if not cache.get_seq_length():
            self._of_reference = DynamicCache(config=self.ref_model.config)
        found = self.model(*args, cache=cache, **kwargs)
        of_reference = self.ref_model(*args, cache=self._of_reference, **kwargs).logits
        mixed = self.mixture_coef * of_reference + (1 - self.mixture_coef) * found.logits
        found.logits = torch.log_softmax(mixed, dim=-1)
        return found


class NoCache(GeometricMixtureWrapper):
    """Without any cache, as TRL's says of itself: every token reads the whole sequence again."""

    def generate(self, *args, generation_config, **kwargs):
        without = copy.deepcopy(generation_config)
        without.use_cache = False
        return super().generate(*args, generation_config=without, **kwargs)


class Measured(NashMDTrainer):
    """Checks that the work is what was to be measured."""

    work: Work

    def _process_completions(self, model_output, mixture_output, prompts):
        whole = (self.work.batch, self.work.prompt + self.work.response)
        for found in (model_output, mixture_output):
            if tuple(found.shape) != whole or (found[:, self.work.prompt :] == END).any():
                raise SystemExit(f"responses are not all of {self.work.response} tokens")
        return super()._process_completions(model_output, mixture_output, prompts)


def peak(work: Work) -> float:
    dtype = getattr(torch, work.precision)
    matrix = torch.randn(PRODUCT, PRODUCT, dtype=dtype, device=work.device)

    def multiply() -> None:
        torch.matmul(matrix, matrix)
        if work.device == "cuda":
            torch.cuda.synchronize()

    return product_gflops(multiply)


def start(work: Work, turns: Turns) -> None:
    if work.device == "cpu":
        torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    policy, reference = LlamaForCausalLM(network(work)), LlamaForCausalLM(network(work))
    reference.load_state_dict(policy.state_dict())
    size = policy.num_parameters()
    embeddings = policy.get_input_embeddings().weight, policy.get_output_embeddings().weight
    about = {
        "parameters": size,
        "outside_embeddings": size - sum(weight.numel() for weight in embeddings),
        "versions": f"trl {trl.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "product_gflops": peak(work),
        "device": torch.cuda.get_device_name() if work.device == "cuda" else "cpu",
    }
    wrappers = {"two_caches": TwoCaches, "no_cache": NoCache}
    nash_md_trainer.GeometricMixtureWrapper = wrappers.get(work.mixture, GeometricMixtureWrapper)
    with tempfile.TemporaryDirectory() as directory:
        trainer = Measured(
            model=policy,
            ref_model=reference,
            reward_funcs=LlamaForSequenceClassification(network(work)),
            args=config(work, directory),
            train_dataset=prompts(work),
            processing_class=tokenizer(work),
            callbacks=[InTurns(turns, work, about)],
        )
        trainer.work = work
        trainer.train()


if __name__ == "__main__":
    run_side(start)
