"""One loaded base model: the frozen Hugging Face model that everything in this package is measured on.

In: a Base artifact's folder. Out: ``LoadedBase``. Eager attention, because flash attention on CPU takes a third of a
training step at these lengths and cannot take the masks of the scoring; bf16 only where the checkpoint is bf16 and
the processor multiplies it natively, or on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from readapt_api.contract import Digest
from readapt_api.errors import Terminal
from readapt_runtime.device import multiplies_bf16
from readapt_runtime.model.config import read_config, transformers_config
from readapt_runtime.model.tensors import check_tensors
from readapt_runtime.model.tokenizer import load_tokenizer
from readapt_runtime.safe_tensors import BadWeights, Checkpoint

_LONGEST = 1024
"""Tokens of one example; longer prompts lose their beginning."""


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base version in memory, all parameters frozen."""

    digest: Digest
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    """Of one example, as far as it is computed."""
    longest: int
    """Positions that the model was made for."""

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes. Adapters and whatever is read from or written to files stay on the CPU."""
        return self.model.device

    @property
    def arithmetic(self) -> str:
        """Number format, and on a GPU which one: what equal inputs need to give equal numbers."""
        return str(self.dtype) if self.device.type == "cpu" else f"{self.dtype} on {device_name(self.device)}"

    @property
    def eos(self) -> int:
        """The token that ends an answer."""
        eos = self.tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise Terminal("the tokenizer of the base names no end-of-sequence token")
        return eos

    @property
    def start(self) -> int:
        """The token that free text starts from: BOS, or EOS where the tokenizer has no BOS."""
        bos = self.tokenizer.bos_token_id
        return bos if isinstance(bos, int) else self.eos

    def logits(self, tokens: Tensor, positions: Tensor, allowed: Tensor, last: int) -> Tensor:
        """Logits [batch, last, vocab] of the last positions, in the model's dtype.

        ``tokens`` and ``positions`` [batch, length] int64; ``allowed`` [batch, length, length] bool: may query i
        attend to key j; wherever they are, the logits are on the base's device. Every row must allow at least one key.
        A mask of one's own leaves a sliding window out, so positions stay below ``max_tokens``.
        """
        tokens, positions, allowed = (each.to(self.device) for each in (tokens, positions, allowed))
        mask = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device).masked_fill(
            ~allowed, torch.finfo(self.dtype).min
        )
        hidden = self.model.base_model(
            input_ids=tokens, position_ids=positions, attention_mask=mask[:, None], use_cache=False
        ).last_hidden_state
        # Contiguous: a bf16 product of a strided input takes seconds instead of milliseconds (torch 2.13, oneDNN).
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logits: Tensor = head(hidden[:, -last:].contiguous())
        return logits


def fix_threads() -> int:
    """Uses all processors that this process may run on (affinity and cgroup quota), and returns their number.

    Results are reproducible for an equal number of threads, so it is fixed once and goes into the evidence.
    """
    threads = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        threads = min(threads, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2, or no quota ("max")
    torch.set_num_threads(threads)
    return threads


def load_base(
    folder: Path, digest: Digest, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> LoadedBase:
    """Loads the model and tokenizer of a folder of safetensors; ``dtype`` None chooses as the module says.

    ``device`` None is the CPU.

    Raises UnsupportedModel, BadTokenizer and BadWeights for what serving and ``fetch`` refuse too, Terminal when
    transformers cannot make a causal language model of it all the same.
    """
    served, config = read_config(folder), transformers_config(folder)
    tokenizer = load_tokenizer(folder, served.vocab_size)
    with Checkpoint(folder) as checkpoint:
        try:
            check_tensors(checkpoint.infos, config)
        except BadWeights as error:
            raise BadWeights(f"{folder}: {error}") from None
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype or _fitting_dtype(config.dtype, device),
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
        raise Terminal(f"{folder}: not a loadable causal language model: {error}"[:500]) from error
    model.train(False)
    model.requires_grad_(False)
    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    return LoadedBase(digest, model, tokenizer, min(_LONGEST, served.longest), served.longest)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars: the Job's log is JSON lines."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def device_name(device: torch.device) -> str:
    """``NVIDIA H200``, or what torch calls the kind."""
    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else device.type


def _fitting_dtype(stored: torch.dtype | None, device: torch.device | None) -> torch.dtype:
    native = multiplies_bf16() if device is None or device.type == "cpu" else True
    return torch.bfloat16 if stored == torch.bfloat16 and native else torch.float32
