"""The tokenizer of a model folder, from that folder and nowhere else."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from readapt_api.errors import Terminal


class BadTokenizer(Terminal):
    """A model folder without a usable tokenizer."""


def load_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Raises BadTokenizer unless there is one and it makes ids below ``vocab_size``."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        ids = tokenizer("Hello, world").input_ids
    except Exception as error:
        # The tokenizers library raises nothing narrower than Exception itself.
        known = (OSError, ValueError, LookupError, TypeError, AttributeError)
        if not isinstance(error, known) and type(error) is not Exception:
            raise
        raise BadTokenizer(f"{folder}: {_why(folder, error)}") from error
    if not ids or max(ids) >= vocab_size:
        raise BadTokenizer(
            f"{folder}: the tokenizer makes ids up to {max(ids, default=-1)}, the model has {vocab_size}"
        )
    return tokenizer


def _why(folder: Path, error: Exception) -> str:
    """transformers' advice on converting other formats is of no use here: no converter is installed."""
    if not (folder / "tokenizer.json").is_file():
        return "no tokenizer.json"
    return f"tokenizer.json or tokenizer_config.json cannot be used: {' '.join(str(error).split())}"[:300]
