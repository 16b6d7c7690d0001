"""Which rows of two embeddings belong to the same token.

In: two model folders and the rows of their embeddings. Out: for each new row the old row of the same token *string*:
a vocabulary that grew in the middle, or was sorted anew, has moved rows, and by their index they would all look
changed. Next: ``difference`` subtracts row from row. Rows beyond a tokenizer's last token are padding; they have no
string and are taken in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from readapt_api.errors import Terminal
from readapt_runtime.safe_tensors import BadWeights, read_json_object

TOKENIZER = "tokenizer.json"
_TOKENIZER_BYTES = 256 << 20


class UnknownVocabulary(Terminal):
    """Two embeddings of different sizes, and nothing says which rows belong together."""


@dataclass(frozen=True, slots=True)
class RowMatch:
    """Where the rows of a new embedding come from."""

    old_rows: torch.Tensor | None = None  # [new rows] int64, -1: a token that the old one lacks; None: from themselves
    removed: tuple[int, ...] = ()
    """Old rows whose token is gone."""


def match_rows(old: Path, new: Path, old_count: int, new_count: int) -> RowMatch:
    """Raises UnknownVocabulary, and BadWeights for a tokenizer.json that cannot be read.

    A folder without a tokenizer of its own is used with the other's.
    """
    paths = (old / TOKENIZER, new / TOKENIZER)
    contents = [path.read_bytes() if path.is_file() else None for path in paths]
    if old_count == new_count and (None in contents or contents[0] == contents[1]):
        return RowMatch()
    for path, content in zip(paths, contents, strict=True):
        if content is None:
            raise UnknownVocabulary(
                f"{path}: no such file, and without it nobody can tell which of {old_count} and {new_count} rows of "
                "the vocabularies belong to the same token"
            )
    before, after = _rows(paths[0], old_count), _rows(paths[1], new_count)
    if old_count == new_count and before == after:
        return RowMatch()
    old_rows = torch.full((new_count,), -1, dtype=torch.int64)
    for token, row in after.items():
        old_rows[row] = before.get(token, -1)
    return RowMatch(old_rows, tuple(sorted(row for token, row in before.items() if token not in after)))


def _rows(path: Path, count: int) -> dict[str | int, int]:
    """Token -> row, for the rows that there are; the n-th row without a token is that of the number n."""
    tokens: dict[str | int, int] = {token: row for token, row in _tokens(path) if row < count}
    taken = set(tokens.values())
    padding = (row for row in range(count) if row not in taken)
    rows: dict[str | int, int] = dict(enumerate(padding))
    return rows | tokens


def _tokens(path: Path) -> Iterator[tuple[str, int]]:
    """Of the model (a mapping, or for Unigram a list of pieces with scores) and those added to it."""
    document = read_json_object(path, _TOKENIZER_BYTES)
    model, added = document.get("model"), document.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, list):
        vocabulary = {piece[0]: row for row, piece in enumerate(vocabulary) if isinstance(piece, list) and piece}
    if not isinstance(vocabulary, Mapping):
        raise BadWeights(f"{path}: no vocabulary")
    entries = added if isinstance(added, list) else []
    extra = {entry.get("content"): entry.get("id") for entry in entries if isinstance(entry, Mapping)}
    for token, row in (*vocabulary.items(), *extra.items()):
        if not isinstance(token, str) or type(row) is not int or row < 0:
            raise BadWeights(f"{path}: {str(token)[:80]!r} is no token of row {str(row)[:20]}")
        yield token, row
