"""A tiny random Llama with adapters and a byte-level tokenizer, written as real folders, and its oracle.

Grouped-query attention, tied embeddings, a vocabulary of bytes: characters beyond ASCII span several tokens. The
weights are large enough that greedy answers differ between base and adapters and rarely come near a tie.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NEAR_TIE = 1e-3
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_base(folder: Path, seed: int = 0, layers: int = 3) -> Path:
    """A LlamaForCausalLM folder with tokenizer and chat template; the end of sequence is token 256."""
    torch.manual_seed(seed)
    LlamaForCausalLM(tiny_config(layers)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def tiny_config(layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.25,
        tie_word_embeddings=True,
        eos_token_id=256,
        bos_token_id=None,
    )


def byte_tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")  # type: ignore[no-untyped-call]
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_adapter_folder(
    folder: Path, base: Path, rank: int, seed: int, modules: tuple[str, ...] = ALL_MODULES, **config: Any
) -> Path:
    """A PEFT adapter with random A and B of the given rank."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(modules),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **config,
    )
    with quiet_peft():
        peft_model = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3 / rank**0.5)
    scratch = folder.with_name(folder.name + ".tmp")
    peft_model.save_pretrained(str(scratch))
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (scratch / name).rename(folder / name)
    shutil.rmtree(scratch)
    return folder


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 for an attribute that the latter has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


@dataclass(frozen=True, slots=True)
class Oracle:
    """transformers + PEFT, fp32, one request at a time."""

    base: Path

    def model(self, adapter: Path | None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        with quiet_peft():
            return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()

    def greedy(self, adapter: Path | None, prompt: list[int], count: int) -> list[int]:
        """Up to ``count`` greedy tokens; ends after the end of sequence."""
        out = self.model(adapter).generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=256,
        )
        tokens: list[int] = out[0, len(prompt) :].tolist()
        return tokens

    @torch.no_grad()
    def log_probs(self, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
        """``[vocab]`` float64 after the last token."""
        logits: torch.Tensor = self.model(adapter)(torch.tensor([tokens])).logits[0, -1]
        return logits.double().log_softmax(-1)

    def assert_greedy(self, adapter: Path | None, prompt: list[int], answer: list[int], count: int) -> None:
        """The answer is the oracle's, or leaves it at a near-tie of the two best tokens."""
        expected = self.greedy(adapter, prompt, count)
        for at, (ours, theirs) in enumerate(zip(answer, expected, strict=False)):
            if ours != theirs:
                best = self.log_probs(adapter, prompt + expected[:at]).topk(2)
                margin = float(best.values[0] - best.values[1])
                assert margin < NEAR_TIE, f"token {at}: {ours} instead of {theirs}, margin {margin}"
                assert ours in best.indices.tolist()
                return
        assert len(answer) == len(expected)
