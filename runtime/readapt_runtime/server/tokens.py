"""Text to tokens and back: the base's own tokenizer and chat template, from its folder and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from readapt_runtime.model.tokenizer import BadTokenizer, load_tokenizer
from readapt_runtime.safe_tensors import read_json_object
from readapt_runtime.server.detokenizer import Detokenizer
from readapt_runtime.server.problems import BadRequest
from readapt_runtime.server.token_bytes import bytes_per_token
from readapt_runtime.server.token_names import TokenNames


class Tokens:
    """The tokenizer of a base; methods that raise BadRequest judge a client's input."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Raises BadTokenizer, and BadWeights for a generation_config.json that cannot be used."""
        tokenizer = load_tokenizer(folder, vocab_size)
        self._tokenizer: Any = tokenizer
        self._vocab_size = vocab_size
        self.names = TokenNames(tokenizer)
        self.stop_ids = _stop_ids(folder, tokenizer)
        self.bytes_per_token = _bytes_per_token(tokenizer)
        """Most text that one token may stand for; None where there is no bound."""

    def encode(self, text: str) -> tuple[int, ...]:
        """As the tokenizer does by default, special tokens included."""
        return self._encode(text, special=True)

    def encode_rendered(self, text: str) -> tuple[int, ...]:
        """What ``render_chat`` made; the template has put the special tokens there."""
        return self._encode(text, special=False)

    def _encode(self, text: str, special: bool) -> tuple[int, ...]:
        ids = self._tokenizer(
            text, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        return tuple(ids)

    def check(self, ids: Sequence[int]) -> tuple[int, ...]:
        """A prompt given as token ids."""
        if any(not 0 <= i < self._vocab_size for i in ids):
            raise BadRequest(f"token ids must be at least 0 and below {self._vocab_size}", "prompt")
        return tuple(ids)

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation through the base's chat template, ready for the assistant's answer."""
        import jinja2

        if not self._tokenizer.chat_template:
            raise BadRequest("this base model has no chat template; use /v1/completions", "messages")
        try:
            text: str = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise BadRequest(f"the chat template refuses these messages: {error}", "messages") from error
        return text

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self._decode)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _bytes_per_token(tokenizer: Any) -> int | None:
    """Tokenizers that are not made of a tokenizer.json have no description."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else bytes_per_token(json.loads(backend.to_str()))


def _stop_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence ids as ``generate`` takes them: generation_config.json, then config.json, then the tokenizer."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            found = read_json_object(path).get("eos_token_id")
            if found is None:
                continue
            ids = found if isinstance(found, list) else [found]
            if not all(type(i) is int for i in ids):
                raise BadTokenizer(f"{path}: eos_token_id is {found!r}, neither a number nor a list of numbers")
            return frozenset(ids)
    return frozenset() if tokenizer.eos_token_id is None else frozenset({tokenizer.eos_token_id})
