"""How much text one token may stand for, read off the description of a tokenizer (``tokenizer.json``).

In: the description. Out: bytes, for ``encoding`` to refuse unread what cannot fit. It is a bound only where no text is
dropped on the way to tokens; where that is not certain there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from readapt_runtime.server.token_names import BYTE_ALPHABET

_NFC_SHRINKS = 4
"""Composed characters take at most 3.5 times fewer bytes, over all characters (U+0390 made of U+1FBE)."""
_KEEPING_NORMALIZERS = {"NFC", "Prepend", "Replace"}
_KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Digits", "Metaspace", "Split"}


def bytes_per_token(description: Mapping[str, Any]) -> int | None:
    """Most UTF-8 bytes of text that become one token; None where text may vanish."""
    model, added = description["model"], description["added_tokens"]
    normalizers = list(_steps(description["normalizer"], "normalizers"))
    pre_tokenizers = list(_steps(description["pre_tokenizer"], "pretokenizers"))
    if model["type"] != "BPE" or any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    if not all(map(_keeps_text, normalizers)) or not all(map(_keeps_pieces, pre_tokenizers)):
        return None
    vocabulary = model["vocab"]
    if any(step["type"] == "ByteLevel" for step in pre_tokenizers):
        known = set(BYTE_ALPHABET) <= vocabulary.keys()
        longest = max(map(len, vocabulary))
    else:
        known = model["byte_fallback"] and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
        longest = max(len(token.encode()) for token in vocabulary)
    if not known:
        return None
    longest = max(longest, *(len(token["content"].encode()) for token in added), 1)
    return longest * (_NFC_SHRINKS if any(step["type"] == "NFC" for step in normalizers) else 1)


def _steps(step: Mapping[str, Any] | None, within: str) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[within]:
            yield from _steps(part, within)
    else:
        yield step


def _keeps_text(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return pattern is not None and len(pattern.encode()) <= len(step["content"].encode())
    return step["type"] in _KEEPING_NORMALIZERS


def _keeps_pieces(step: Mapping[str, Any]) -> bool:
    return step["type"] in _KEEPING_PRE_TOKENIZERS and step.get("behavior") != "Removed"
