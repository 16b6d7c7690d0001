"""From the factors of a finished task to a frozen direction.

On freezing the magnitude absorbs the norm, α = ‖s B A‖_F and D = s B A / α, so that the function does not jump. The
paper normalises by the norm of the product, its code by the product of the norms; this is the paper's. Then, both
optional:

reduced rank    the least rank that keeps a share of the direction's energy, in place of the paper's hand-set schedule
distillation    a direction whose distance to the span of the earlier ones of its module is small, relative to its own
                norm, is dropped, and its share is added to their magnitudes (the paper's threshold is absolute)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from readapt_runtime.continual.blocks import Block, Learned
from readapt_runtime.lora_format import LoraAdapter, LoraModule
from readapt_runtime.lowrank import LowRank, add, energy, inner, norm, recompress, scale


@dataclass(frozen=True, slots=True)
class Reduction:
    """What may be given up of a finished task."""

    energy: float = 1.0
    """Of a direction, to keep; at 1 its rank stays."""
    threshold: float = 0.0
    """Largest relative distance to the earlier directions at which it is dropped; at 0 none is."""


@dataclass(frozen=True, slots=True)
class Share:
    """A direction in terms of earlier ones: the nearest point of their span."""

    coefficients: tuple[float, ...]
    residual: float
    """‖D - Σ c_k D_k‖ / ‖D‖."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """All that is learned after a task, and what became of its own modules."""

    learned: Learned
    residuals: dict[str, float]
    """Relative distance to the earlier directions, by module; 1 for the first task."""
    dropped: tuple[str, ...]
    kept_energy: float
    """Share of the task's squared norm that the reduced ranks kept, over its modules that were not dropped."""


def freeze(learned: Learned, current: LoraAdapter, task: str, reduction: Reduction) -> Frozen:
    """``learned`` and one more block made of ``current``; modules whose product is zero add nothing."""
    directions, magnitudes, residuals, dropped = {}, {}, {}, []
    square = kept_square = 0.0
    for name, module in current.modules.items():
        update = update_of(module)
        size = norm(update)
        if size == 0.0:
            continue
        direction = scale(update, 1 / size)
        found = share(direction, [b.directions[name] for b in learned.holding(name)])
        residuals[name] = found.residual
        if found.residual <= reduction.threshold:
            learned = _absorb(learned, name, [size * c for c in found.coefficients])
            dropped.append(name)
            continue
        smaller = _reduced(direction, reduction.energy)
        kept = norm(smaller)
        directions[name], magnitudes[name] = scale(smaller, 1 / kept), size * kept
        square, kept_square = square + size**2, kept_square + (size * kept) ** 2
    grown = Learned((*learned.blocks, Block(task, directions, magnitudes)))
    return Frozen(grown, residuals, tuple(dropped), kept_square / square if square else 1.0)


def update_of(module: LoraModule) -> LowRank:
    """The change of the weight, scale · B A."""
    return LowRank(module.b.float() * module.scale, module.a.float())


def share(direction: LowRank, earlier: Sequence[LowRank]) -> Share:
    """Least squares in factored form: the normal equations of the [k, k] Gram matrix, the residual from the difference.

    The residual is the norm of the difference itself: 1 - cᵀh would lose the digits of a small one.
    """
    size = norm(direction)
    if not earlier or size == 0.0:
        return Share((0.0,) * len(earlier), 1.0)
    gram = torch.tensor([[inner(x, y) for y in earlier] for x in earlier], dtype=torch.float64)
    right = torch.tensor([inner(x, direction) for x in earlier], dtype=torch.float64)
    solved: list[float] = (torch.linalg.pinv(gram, hermitian=True) @ right).tolist()
    rest = add(direction, *(scale(x, -c) for x, c in zip(earlier, solved, strict=True)))
    return Share(tuple(solved), norm(rest) / size)


def _absorb(learned: Learned, module: str, shares: Sequence[float]) -> Learned:
    left = iter(shares)
    blocks = []
    for block in learned.blocks:
        if module in block.directions:
            block = replace(block, magnitudes={**block.magnitudes, module: block.magnitudes[module] + next(left)})
        blocks.append(block)
    return Learned(tuple(blocks))


def _reduced(direction: LowRank, share_kept: float) -> LowRank:
    """The best approximation of the least rank that keeps the share; the direction itself where none is smaller."""
    for rank in range(1, direction.rank):
        if energy(direction, rank) >= share_kept:
            return recompress(direction, rank)
    return direction
