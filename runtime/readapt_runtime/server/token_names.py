"""What single tokens are called in log-probabilities: their bytes, which need not be whole characters, and a name.

In: the base's tokenizer. Out: bytes and names of ids, for ``openai_logprobs``. A token's text depends on its left
neighbour (leading spaces), so it is read off behind itself; byte tokens are looked up in the two notations that there
are: ``<0xE4>`` of SentencePiece, and the alphabet of GPT-2's byte-level BPE.
"""

from __future__ import annotations

import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 stands for itself, the others for 256 and up, in order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_ALPHABET = _byte_alphabet()


class TokenNames:
    """Remembers what it has looked up; at most one entry per token of the vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """Empty for ids that the tokenizer does not know."""
        if token not in self._known:
            self._known[token] = self._look_up(token)
        return self._known[token]

    def name(self, token: int) -> str:
        """The text; ``bytes:\\xe4`` for a part of a character, as OpenAI writes it; ``token_id:5`` without text."""
        raw = self.bytes_of(token)
        if not raw:
            return f"token_id:{token}"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _look_up(self, token: int) -> bytes:
        text = self._decode([token, token]).removeprefix(self._decode([token]))
        if _UNFINISHED not in text:
            return text.encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return bytes(BYTE_ALPHABET[c] for c in piece) if all(c in BYTE_ALPHABET for c in piece) else text.encode()

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
