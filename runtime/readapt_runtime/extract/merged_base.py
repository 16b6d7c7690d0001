"""A base that the adapter and nothing else turns into the checkpoint.

In: both checkpoints and the modules that the adapter changes. Out: a model folder: the checkpoint, with these modules
as the base has them. What no adapter can carry (norms, biases, embeddings, new tokens) is in it, so that this base
with the adapter differs from the checkpoint by nothing but the adapter's error. For those who may replace the base:
it serves this one adapter, where the original serves all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

from readapt_runtime.difference import CheckpointPair
from readapt_runtime.safe_tensors import INDEX_FILE
from readapt_runtime.tensor_stream import Entry, copied, write_stream
from readapt_runtime.vocabulary import TOKENIZER

MERGED_BASE = "merged-base"
_DOCUMENTS = {".json", ".jinja", ".txt", ".model"}
_OF_TOKENIZERS = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")


def write_merged_base(folder: Path, pair: CheckpointPair, modules: Collection[str]) -> None:
    """Makes ``folder``, in the checkpoint's own shards. Raises BadWeights, FileChanged."""
    folder.mkdir()
    shards: dict[str, list[str]] = {}
    for name in pair.new.infos:
        shards.setdefault(pair.new.file_of(name), []).append(name)
    for shard, names in shards.items():
        write_stream(folder / shard, *_tensors(pair, names, {f"{module}.weight" for module in modules}))
    if len(shards) > 1:
        size = sum((folder / shard).stat().st_size for shard in shards)
        index = {
            "metadata": {"total_size": size},
            "weight_map": {name: shard for shard, names in shards.items() for name in names},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for path in _documents(pair.old.folder, pair.new.folder):
        shutil.copyfile(path, folder / path.name)


def _tensors(
    pair: CheckpointPair, names: list[str], kept: Collection[str]
) -> tuple[dict[str, Entry], Iterator[torch.Tensor]]:
    sides = [copied(pair.old if name in kept else pair.new, [name]) for name in names]
    return {n: entry for entries, _ in sides for n, entry in entries.items()}, (
        p for _, pieces in sides for p in pieces
    )


def _documents(base: Path, checkpoint: Path) -> Iterator[Path]:
    """The checkpoint's, and the base's tokenizer where the checkpoint has none of its own."""
    yield from _files(checkpoint)
    if not (checkpoint / TOKENIZER).is_file():
        yield from (path for path in _files(base) if path.name.startswith(_OF_TOKENIZERS))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".")
        if path.is_file() and path.suffix in _DOCUMENTS and path.name != INDEX_FILE and not hidden:
            yield path
