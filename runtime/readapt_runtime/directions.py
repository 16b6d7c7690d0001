"""The leading directions of what changed between two checkpoints, module by module.

In: an opened ``CheckpointPair`` and the modules to look at. Out: for each its exact norms and its leading singular
triplets. Next: extraction makes an adapter of them, the drift keeps them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from readapt_runtime.difference import Change, CheckpointPair
from readapt_runtime.lora_format import Shape
from readapt_runtime.lowrank import Decomposition, decompose_all

_STACK_ELEMENTS = 1 << 29
"""On a GPU: 2 GiB of differences; products and copies of the directions add less than as much."""


def leading_directions(
    pair: CheckpointPair, modules: Sequence[str], rank: int, together: int | None = None
) -> Iterator[tuple[str, Change, Decomposition | None]]:
    """(module, its change, its min(rank, out, in) leading directions, or None where nothing changed).

    ``together``: elements of the modules that are decomposed at once. Without it one module on a CPU, in the order of
    ``modules``, so that its result depends on nothing else; on a GPU shape by shape what fits into 2 GiB. Raises
    BadWeights, FileChanged, and NotFinite for factors that float32 cannot hold.
    """
    if together is None and pair.device.type != "cpu":
        together = _STACK_ELEMENTS
    alone = [[module] for module in modules]
    batches = alone if together is None else list(_stacks(modules, pair.shapes, together))
    # One memory for all: what an allocator keeps of freed ones would add up to several tensors.
    elements = max(len(batch) * math.prod(pair.shapes[batch[0]]) for batch in batches)
    memory = torch.empty(elements, device=pair.device)
    for batch in batches:
        size = (len(batch), *pair.shapes[batch[0]])
        stack = memory[: math.prod(size)].view(size)
        changes = [pair.subtract(module, delta) for module, delta in zip(batch, stack, strict=True)]
        yield from zip(batch, changes, _decompose(stack, changes, rank), strict=True)


def _decompose(stack: torch.Tensor, changes: Sequence[Change], rank: int) -> Sequence[Decomposition | None]:
    if not any(change.norm for change in changes):
        return [None] * len(changes)
    energies = torch.tensor([change.norm**2 for change in changes], dtype=torch.float64)
    seeds = [zlib.crc32(change.name.encode()) for change in changes]
    found = decompose_all(stack, rank, seeds, energies)
    return [one if change.norm else None for one, change in zip(found, changes, strict=True)]


def _stacks(modules: Sequence[str], shapes: Mapping[str, Shape], elements: int) -> Iterator[Sequence[str]]:
    """Modules of one shape, as many together as have ``elements``, but always one."""
    for shape in dict.fromkeys(shapes[module] for module in modules):
        alike = [module for module in modules if shapes[module] == shape]
        count = max(1, elements // (shape.out * shape.into))
        yield from (alike[at : at + count] for at in range(0, len(alike), count))
