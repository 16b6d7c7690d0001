"""The leading singular directions of dense matrices.

In: weight differences, float32, one or several of one shape. Out: their leading singular values and vectors, with a
word on how they were found. Next: extraction and drift split them into factors. A Krylov subspace grows until what it
still misses is estimated to be little beside what no approximation of that rank can hold; where it does not get there,
or the matrix is so small that nothing is saved, the eigenvectors of the Gram matrix are computed in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from readapt_runtime.lowrank.factors import LowRank, NotFinite, require_finite, split_symmetric
from readapt_runtime.lowrank.krylov import Subspace, inverse, leading

_OVERSAMPLE = 16
_MAX_BLOCKS = 12
_LEFT = 0.01
"""Energy that may still be missing, as a share of what the best approximation leaves over: the error of the result is
then within half a per cent of the optimum. Measured on differences of a 135M model; see docs/adaptation.md."""
_ROUNDING = 1e-10
"""Share of the whole energy that is not worth looking for in float32."""
_LARGEST = torch.finfo(torch.float32).max / 8
_FLOAT64_ELEMENTS = 1 << 18
"""Of a matrix, at a time."""


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Singular triplets, descending. ``iterations``: how often the subspace grew; 0 means that all were computed.

    Directions whose singular value is zero to rounding may be zero instead of orthonormal.
    """

    u: torch.Tensor  # [m, r]
    s: torch.Tensor  # [r]
    vt: torch.Tensor  # [r, n]
    iterations: int

    def factors(self, rank: int) -> LowRank:
        """The ``rank`` leading directions, split evenly."""
        return split_symmetric(self.u[:, :rank], self.s[:rank], self.vt[:rank])


def decompose(matrix: torch.Tensor, rank: int, seed: int = 0) -> Decomposition:
    """The min(rank, m, n) leading singular triplets of ``matrix`` [m, n], computed in float32.

    The same matrix, rank and seed give the same result on the same machine. Raises NotFinite.
    """
    require_finite(matrix)
    if rank < 1 or matrix.ndim != 2:
        raise ValueError(f"rank {rank} of a matrix of shape {list(matrix.shape)}")
    energy = torch.linalg.vector_norm(matrix.double()).square()
    return decompose_all(matrix.float()[None], rank, [seed], energy[None])[0]


def decompose_all(
    matrices: torch.Tensor, rank: int, seeds: Sequence[int], energies: torch.Tensor
) -> list[Decomposition]:
    """``decompose`` for k finite matrices [k, m, n] at once, on their device; ``energies`` [k] are their ‖·‖², float64.

    A GPU computes the whole stack in each step. Matrices need different numbers of steps; all take the most. Raises
    NotFinite for singular values that float32 cannot hold.
    """
    if not bool((energies.sqrt() < _LARGEST).all()):
        raise NotFinite(f"a matrix of norm {float(energies.max()) ** 0.5:.3g} has singular values beyond float32")
    rank = min(rank, *matrices.shape[1:])
    block = -(-(rank + _OVERSAMPLE) // 16) * 8  # half of what is wanted and some, in eights
    if 5 * block > min(matrices.shape[1:]):
        return [_decompose_fully(matrix, rank) for matrix in matrices]
    space = Subspace.empty(matrices)
    energies = energies.to(matrices.device)
    settled = _fill(space, matrices, rank, _random_inputs(matrices, block, seeds, energies), energies)
    u, s, vt = (found.to(matrices.dtype) for found in space.triplets(rank))
    iterations = space.width // block
    return [
        Decomposition(u[at], s[at], vt[at], iterations) if settled[at] else _decompose_fully(matrix, rank)
        for at, matrix in enumerate(matrices)
    ]


def _fill(
    space: Subspace, matrices: torch.Tensor, rank: int, inputs: torch.Tensor, energies: torch.Tensor
) -> Sequence[bool]:
    """Grows ``space`` until the Ritz values of all matrices have settled; says of which they have."""
    history: list[torch.Tensor] = []
    settled = torch.zeros(len(matrices), dtype=torch.bool)
    for _ in range(min(_MAX_BLOCKS, min(matrices.shape[1:]) // inputs.shape[2])):
        seen = space.grow(matrices, inputs)
        if space.width >= rank:
            history.append(space.energy(rank))
            settled = _are_settled(history, energies)
        if bool(settled.all()):
            break
        # Orthonormal inputs: otherwise the small directions drown in the rounding of the large ones.
        inputs = torch.linalg.qr(seen)[0]
    found: list[bool] = settled.tolist()
    return found


def _are_settled(history: Sequence[torch.Tensor], energies: torch.Tensor) -> torch.Tensor:
    """[k]; Ritz values only grow, each time by a factor less: what is still to come is the rest of that series."""
    left = (energies - history[-1]).clamp(min=0)
    nothing_left = left <= _ROUNDING * energies
    if len(history) < 3:
        return nothing_left
    gained, before = history[-1] - history[-2], history[-2] - history[-3]
    pace = torch.where(before > 0, gained / before, 0.0).clamp(0, 0.99)
    return nothing_left | (gained * pace / (1 - pace) <= _LEFT * left)


def _random_inputs(matrices: torch.Tensor, width: int, seeds: Sequence[int], energies: torch.Tensor) -> torch.Tensor:
    """[k, n, width]; drawn on the CPU, so that all devices start alike, and of a size that keeps products near 1."""
    n = matrices.shape[2]
    drawn = [torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    scale = torch.where(energies > 0, energies, 1.0).rsqrt().to(matrices.dtype)
    return torch.stack(drawn).to(matrices) * scale[:, None, None]


def _decompose_fully(matrix: torch.Tensor, rank: int) -> Decomposition:
    """Through the eigenvectors of the smaller Gram matrix in float64, faster than LAPACK's SVD and in less memory."""
    if matrix.shape[0] > matrix.shape[1]:
        turned = _decompose_fully(matrix.T, rank)
        return Decomposition(turned.vt.T, turned.s, turned.u.T, 0)
    columns = torch.split(matrix, max(1, _FLOAT64_ELEMENTS // matrix.shape[0]), dim=1)
    gram = torch.zeros(matrix.shape[0], matrix.shape[0], dtype=torch.float64, device=matrix.device)
    for wide in (part.double() for part in columns):
        gram.addmm_(wide, wide.T)
    s, u = (found[0] for found in leading(gram[None], rank))
    back = u.T * inverse(s)[:, None]
    vt = torch.cat([(back @ part.double()).to(matrix.dtype) for part in columns], dim=1)
    return Decomposition((u * (s > 0)).to(matrix.dtype), s.to(matrix.dtype), vt, 0)
