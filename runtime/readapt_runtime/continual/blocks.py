"""What an adapter has learned so far: one block of directions and magnitudes per task.

In: finished tasks. Out: the sum of all blocks as one ordinary LoRA, exact (factors side by side) or of a bounded rank.
Next: training of the next task hangs it beside the base, serving gets the folded adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from readapt_runtime.lora_format import LoraAdapter, LoraModule
from readapt_runtime.lowrank import LowRank, add, energy, norm, recompress, scale


@dataclass(frozen=True, slots=True)
class Block:
    """What one task added; a module whose direction was dropped is not in it."""

    task: str
    directions: Mapping[str, LowRank]
    """By module; Frobenius norm 1."""
    magnitudes: Mapping[str, float]
    """By module, the same ones."""


@dataclass(frozen=True, slots=True)
class Learned:
    """The blocks of all tasks, in the order in which they were learned."""

    blocks: tuple[Block, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that have a direction, sorted: sums over them are the same whatever was read back from files."""
        return tuple(sorted({name for block in self.blocks for name in block.directions}))

    @property
    def parameters(self) -> int:
        """Numbers that are stored: factors and magnitudes."""
        factors = [d for block in self.blocks for d in block.directions.values()]
        return sum(d.left.numel() + d.right.numel() + 1 for d in factors)

    def holding(self, module: str) -> tuple[Block, ...]:
        """The blocks that have a direction of ``module``."""
        return tuple(block for block in self.blocks if module in block.directions)

    def update(self, module: str) -> LowRank:
        """Σ_k α_k D_k of one module, exact; its rank is the sum of the ranks."""
        return add(*(scale(b.directions[module], b.magnitudes[module]) for b in self.holding(module)))

    @property
    def adapter(self) -> LoraAdapter:
        """All blocks as one LoRA, exact; its rank is the sum of theirs."""
        updates = {module: self.update(module) for module in self.modules}
        return LoraAdapter({name: LoraModule(name, x.right, x.left, 1.0) for name, x in updates.items()})

    @property
    def magnitudes(self) -> dict[str, list[float]]:
        """By module, one per block of ``holding(module)``."""
        return {name: [block.magnitudes[name] for block in self.holding(name)] for name in self.modules}

    def with_magnitudes(self, magnitudes: Mapping[str, list[float]]) -> Learned:
        """The same directions with these ``magnitudes``."""
        left = {module: iter(values) for module, values in magnitudes.items()}
        return Learned(
            tuple(replace(b, magnitudes={name: next(left[name]) for name in b.directions}) for b in self.blocks)
        )


@dataclass(frozen=True, slots=True)
class Folded:
    """One ordinary LoRA in place of the blocks."""

    adapter: LoraAdapter
    discarded: float
    """Share of the squared norm, over all modules, that the bound on the rank cost; 0 when the fold is exact."""


def fold(learned: Learned, max_rank: int) -> Folded:
    """The sum of the blocks as one adapter whose modules have rank ``max_rank`` at most.

    Modules that fit are factors side by side, exact up to rounding; the others are recompressed to the best
    approximation of that rank.
    """
    modules, lost, total = {}, 0.0, 0.0
    for name in learned.modules:
        update = learned.update(name)
        square = norm(update) ** 2
        kept = 1.0 if update.rank <= max_rank else energy(update, max_rank)
        served = update if update.rank <= max_rank else recompress(update, max_rank)
        lost, total = lost + (1 - kept) * square, total + square
        modules[name] = LoraModule(name, served.right, served.left, 1.0)
    return Folded(LoraAdapter(modules), lost / total if total > 0 else 0.0)
