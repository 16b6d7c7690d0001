"""Tiny random models of every family that is served, as folders, and what transformers answers for them.

Every parameter is random, norm weights and biases too: one that is left out, or applied in the wrong place, shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from readapt_runtime.engine.core import Batch, Variant
from readapt_runtime.engine.engine import Engine, Model
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.model.decoders import choose_decoder
from readapt_testing.tiny_engine import Tiny, ask, run_to_idle
from readapt_testing.tiny_llama import ALL_MODULES, byte_tokenizer, quiet_peft

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}

# head_dim is not hidden / heads wherever the family can say it; groups of 1, 2, 3 and 4 heads share keys and values
FAMILIES: Mapping[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 20},
    "llama untied, biased, llama3": {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": LLAMA3,
    },
    "mistral untied": {
        "model_type": "mistral",
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 512,
        "tie_word_embeddings": False,
    },
    "mistral linear": {
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "sliding_window": None,
        "rope_parameters": LINEAR,
    },
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2 untied, yarn": {
        "model_type": "qwen2",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_parameters": YARN,
        "sliding_window": 16,  # not in use, and so of no effect
        "use_sliding_window": False,
    },
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True},
    "qwen3 untied, biased, yarn": {
        "model_type": "qwen3",
        "num_key_value_heads": 1,
        "head_dim": 16,
        "attention_bias": True,
        "rope_parameters": YARN,
    },
    "smollm3": {"model_type": "smollm3", "num_key_value_heads": 2, "no_rope_layer_interval": 2},
}
_COMMON: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": None,
}


def write_family(folder: Path, options: Mapping[str, Any], seed: int = 0) -> Path:
    """A folder with model and tokenizer; ``options`` as in config.json."""
    torch.manual_seed(seed)
    settings = {**_COMMON, **options}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[settings["model_type"]].from_dict(settings))
    randomize(model)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def randomize(model: torch.nn.Module) -> None:
    """Weights, norms and biases away from their neutral values; large enough that answers differ clearly."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.normal_(std=0.25)


def write_lora(folder: Path, base: Path, seed: int = 1, **options: Any) -> Path:
    """A PEFT folder with random factors; ``options`` are those of LoraConfig."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": list(ALL_MODULES), **options}
    with quiet_peft():
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings),
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    model.save_pretrained(str(folder))
    return folder


@dataclass
class Recorder:
    """A model that keeps the logits it computed: per request, in the order of its answer."""

    model: Model
    logits: dict[tuple[int, ...], list[torch.Tensor]] = field(default_factory=dict)

    def forward(self, batch: Batch) -> torch.Tensor:
        found = self.model.forward(batch)
        for row, values in zip(batch.sampling_rows, found, strict=True):
            self.logits.setdefault(row.seq.request.prompt, []).append(values.clone())
        return found

    def pick(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        return self.model.pick(batch, logits)


def answer_and_logits(
    tiny: Tiny,
    asked: Mapping[tuple[int, ...], Variant | None],
    max_tokens: int,
    limits: EngineLimits,
    max_model_len: int = 512,
    decoder: Callable[..., Model] = choose_decoder,
) -> dict[tuple[int, ...], tuple[list[int], torch.Tensor]]:
    """Prompt -> (its answer, logits ``[tokens of the answer, vocab]``), all prompts in one engine, greedily."""
    engine: Engine = tiny.engine(limits=limits, max_model_len=max_model_len, decoder=decoder)
    recorder = Recorder(engine._model)
    engine._model = recorder
    answers = {prompt: ask(engine, list(prompt), variant, max_tokens)[1] for prompt, variant in asked.items()}
    run_to_idle(engine)
    return {p: (answer.tokens, torch.stack(recorder.logits[p])) for p, answer in answers.items()}


class Reference:
    """transformers (and PEFT) over the same folders, float32, loaded once."""

    def __init__(self, base: Path, adapter: Path | None = None) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with quiet_peft():
            self._model: Any = (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).eval()

    @torch.no_grad()
    def logits(self, prompt: tuple[int, ...], answer: list[int]) -> torch.Tensor:
        """``[tokens of the answer, vocab]``, in one forward pass over prompt and answer."""
        logits: torch.Tensor = self._model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0]
        return logits[len(prompt) - 1 :]
