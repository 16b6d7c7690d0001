"""What changed beside the linear modules: embeddings, heads, norms, biases.

In: an opened ``CheckpointPair``. Out: the exact norm of each change, and of a vocabulary what became of its rows.
Next: the drift reports them, extraction puts them beside the adapter. Rows of a vocabulary are compared by the string
of their token, never by their number (see ``vocabulary``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from readapt_runtime.difference import Change, CheckpointPair, DifferentModels, RowChanges, squared
from readapt_runtime.safe_tensors import Checkpoint
from readapt_runtime.vocabulary import match_rows

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Rest:
    """The tensors of a pair's new checkpoint that are no linear module of a decoder layer."""

    def __init__(self, pair: CheckpointPair) -> None:
        """Raises DifferentModels when one checkpoint lacks a tensor of the other that a decoder cannot do without."""
        self._pair = pair
        self.copies: Mapping[str, str] = _copies(pair)
        """Those that follow from others, and why; nobody needs to compare them."""
        linear = {f"{module}.weight" for module in pair.shapes}
        self.names = [n for n in pair.new.infos if n not in linear and n not in self.copies]
        for name in pair.old.infos:
            if name not in pair.new.infos and not _is_computed(name) and not (name == HEAD and _is_tied(pair.old)):
                raise DifferentModels(f"{pair.new.folder}: no tensor {name}, which {pair.old.folder} has")
        for name in self.names:
            if name not in pair.old.infos and (name == EMBEDDING or name.endswith("norm.weight")):
                raise DifferentModels(f"{pair.old.folder}: no tensor {name}, which {pair.new.folder} has")

    def measure(self, name: str) -> Change:
        """The change of one of ``names``; what only one side has counts in full.

        Raises DifferentModels for shapes that cannot be compared, UnknownVocabulary, BadWeights.
        """
        pair, old_name = self._pair, name
        if name == HEAD and HEAD not in pair.old.infos:
            old_name = EMBEDDING  # what a tied head was
        if old_name not in pair.old.infos:
            return Change(name, _norm(pair, pair.new, name), 0.0)
        before, after = pair.old.infos[old_name].shape, pair.new.infos[name].shape
        is_vocabulary = name in {EMBEDDING, HEAD} and len(before) == 2
        if is_vocabulary and before[1:] == after[1:]:
            match = match_rows(pair.old.folder, pair.new.folder, before[0], after[0])
            if match.old_rows is not None:
                return _compare_by_token(pair, (old_name, name), match.old_rows, match.removed)
        if before != after:
            raise DifferentModels(f"{name}: shapes {list(before)} and {list(after)} cannot be compared")
        return _compare(pair, name, old_name, is_vocabulary)


def _compare(pair: CheckpointPair, name: str, old_name: str, is_vocabulary: bool) -> Change:
    """Element by element."""
    width = pair.new.infos[name].shape[-1] if is_vocabulary else 1
    squares = old_squares = 0.0
    changed = 0
    sides = (pair.blocks(pair.old, old_name, width), pair.blocks(pair.new, name, width))
    for old, new in zip(*sides, strict=True):
        old_squares += squared(old, pair.old, old_name)
        squares += squared(new.sub_(old), pair.new, name)
        changed += int(new.view(-1, width).any(dim=1).sum()) if is_vocabulary else 0
    rows = RowChanges(changed, added=0, removed=0, moved=0) if is_vocabulary else None
    return Change(name, math.sqrt(squares), math.sqrt(old_squares), rows)


def _compare_by_token(
    pair: CheckpointPair, names: tuple[str, str], old_rows: torch.Tensor, removed: Sequence[int]
) -> Change:
    """The rows of tokens that both sides have one by one, the others in full; the old side is in memory as stored.

    ``old_rows``: see ``RowMatch``.
    """
    old_name, name = names
    old = pair.old.read(old_name)
    width = old.shape[1]
    squares = sum(squared(old[row].float(), pair.old, old_name) for row in removed)
    changed = first = 0
    for block in pair.blocks(pair.new, name, width):
        new = block.cpu().view(-1, width)
        sources = old_rows[first : first + len(new)]
        first += len(new)
        known = sources >= 0
        new[known] -= old[sources[known]].float()
        squares += squared(new.view(-1), pair.new, name)
        changed += int(new[known].any(dim=1).sum())
    known = old_rows >= 0
    moved = int((known & (old_rows != torch.arange(first))).sum())
    rows = RowChanges(changed, added=int((~known).sum()), removed=len(removed), moved=moved)
    return Change(name, math.sqrt(squares), _norm(pair, pair.old, old_name), rows)


def _norm(pair: CheckpointPair, side: Checkpoint, name: str) -> float:
    return math.sqrt(sum(squared(block, side, name) for block in pair.blocks(side, name)))


def _copies(pair: CheckpointPair) -> dict[str, str]:
    found = {name: "computed from the config" for name in pair.new.infos if _is_computed(name)}
    if _is_tied(pair.new) and (HEAD not in pair.old.infos or _is_tied(pair.old)):
        found[HEAD] = "a copy of the embedding"
    return found


def _is_computed(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq")


def _is_tied(side: Checkpoint) -> bool:
    """Whether there is a head and it holds what the embedding holds."""
    if HEAD not in side.infos or EMBEDDING not in side.infos:
        return False
    return torch.equal(side.read(HEAD), side.read(EMBEDDING))
