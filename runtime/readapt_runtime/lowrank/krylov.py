"""Block Krylov subspaces: where the leading singular directions of large matrices are found.

In: matrices of one shape, stacked. Out: an orthonormal basis of span{Y, (AAᵀ)Y, (AAᵀ)²Y, …} for Y = A·Ω with random Ω,
one block wider at a time, and the Rayleigh-Ritz values of A in it. Next: ``decomposition`` stops when they have
settled. The subspace keeps what subspace iteration throws away between its steps: the same products with A find the
leading directions several times more exactly, however slowly the singular values fall (Musco and Musco 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_NOISE = 1e-6
"""Share of the largest singular value below which one is the rounding of float32."""
_ASKEW = 1e-3
"""Part of new directions in the old ones up to which taking it away leaves them orthonormal, to its square."""
_LOST = 0.1
"""Part of a new direction in the old ones, after these were taken away, by which nothing but rounding is known."""


@dataclass(slots=True)
class Subspace:
    """k matrices A [m, n] seen through w directions each."""

    left: torch.Tensor  # [k, m, w] orthonormal columns; zero ones where a matrix has no further direction
    right: torch.Tensor  # [k, n, w] float64, Aᵀ @ left
    gram: torch.Tensor  # [k, w, w] float64, rightᵀ @ right: its eigenvalues are the squared Ritz values

    @classmethod
    def empty(cls, matrices: torch.Tensor) -> Subspace:
        k, m, n = matrices.shape
        right, gram = (matrices.new_empty(k, size, 0, dtype=torch.float64) for size in (n, 0))
        return cls(matrices.new_empty(k, m, 0), right, gram)

    @property
    def width(self) -> int:
        return self.left.shape[2]

    def grow(self, matrices: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Takes in A @ ``inputs`` [k, n, b]; what it returns spans the inputs that the next block is made of."""
        fresh = _without(matrices @ inputs, self.left)
        seen = matrices.mT @ fresh
        wide = seen.double()
        self.left = torch.cat([self.left, fresh], dim=2)
        self.right = torch.cat([self.right, wide], dim=2)
        cross = self.right.mT @ wide  # [k, w, b]
        before = self.gram.shape[1]
        self.gram = torch.cat([torch.cat([self.gram, cross[:, :before].mT], dim=1), cross], dim=2)
        return seen

    def energy(self, rank: int) -> torch.Tensor:
        """[k] float64, the sum of the ``rank`` largest squared Ritz values."""
        squares: torch.Tensor = torch.linalg.eigvalsh(self.gram)
        return squares[:, -rank:].sum(dim=1)

    def triplets(self, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(u [k, m, r], s [k, r], vt [k, r, n]): the leading Ritz triplets, descending, in float64 but u.

        Directions whose value is rounding are zero.
        """
        s, turn = leading(self.gram, rank)
        vt = (self.right @ turn * inverse(s)[:, None]).mT
        u = self.left @ (turn * (s > 0)[:, None]).to(self.left.dtype)
        return u, s, vt


def leading(gram: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(s [k, r] descending, zero where it is rounding; eigenvectors [k, w, r]) of gram [k, w, w] = S² in some basis."""
    squares, turn = (found[..., -rank:].flip(-1) for found in torch.linalg.eigh(gram))
    s = squares.clamp(min=0).sqrt()
    return s * (s > _NOISE * s[:, :1]), turn


def inverse(s: torch.Tensor) -> torch.Tensor:
    """1 / s, and 0 of 0."""
    return torch.where(s > 0, s, torch.inf).reciprocal()


def _without(product: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis [k, m, b] of the part of ``product`` [k, m, b] outside of ``basis`` [k, m, w].

    Where there is no such part, random directions take its place: a matrix with few distinct singular values needs
    them to go on, others are not harmed. Where there is no room for those either, zero.
    """
    q = _outside(product, basis)
    overlap = basis.mT @ q
    if bool((overlap.abs() > _ASKEW).any()):
        generator = torch.Generator().manual_seed(basis.shape[2])
        spare = torch.randn(q.shape[1:], generator=generator).to(q)
        q = _outside(torch.where(_is_lost(overlap), spare, q), basis)
        overlap = basis.mT @ q
        q, overlap = q * ~_is_lost(overlap), overlap * ~_is_lost(overlap)
    return q - basis @ overlap  # twice is enough (Kahan and Parlett)


def _outside(directions: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    q: torch.Tensor = torch.linalg.qr(directions - basis @ (basis.mT @ directions))[0]
    return q


def _is_lost(overlap: torch.Tensor) -> torch.Tensor:
    """[k, 1, b], of [k, w, b]."""
    return overlap.abs().amax(dim=1, keepdim=True) > _LOST
