"""A matrix kept as two thin factors, and the algebra on it.

In and out: ``LowRank`` values. No operation forms a product of the full size [m, n]; the largest intermediate is a
factor. Inner products, norms and decompositions run in float64 on the factors, where they cost next to nothing, so
that differences of nearly equal matrices keep their digits. Results are float32, or float64 when an input is. What is
no finite number gets no further than the constructor: NotFinite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from readapt_api.errors import Terminal


class NotFinite(Terminal):
    """A matrix or factor holds NaN or infinite values."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The matrix ``left @ right`` of shape [m, n] and rank at most r; r may be 0: zero. Raises NotFinite."""

    left: torch.Tensor  # [m, r]
    right: torch.Tensor  # [r, n]

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ValueError(f"factors {list(self.left.shape)} and {list(self.right.shape)} do not multiply")
        require_finite(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The width of the factors, an upper bound of the rank."""
        return self.left.shape[1]


def add(*terms: LowRank) -> LowRank:
    """The sum, exact: factors side by side, so ranks add up. Shapes must agree."""
    if len({term.shape for term in terms}) != 1:
        raise ValueError(f"shapes {[term.shape for term in terms]} cannot be added")
    dtype = _result_dtype(*terms)
    left = torch.cat([term.left.to(dtype) for term in terms], dim=1)
    right = torch.cat([term.right.to(dtype) for term in terms], dim=0)
    return LowRank(left, right)


def scale(x: LowRank, factor: float) -> LowRank:
    """``factor * x``; the sign goes to the left, the magnitude evenly to both sides."""
    root = abs(factor) ** 0.5
    dtype = _result_dtype(x)
    return LowRank(x.left.to(dtype) * (root if factor >= 0 else -root), x.right.to(dtype) * root)


def inner(x: LowRank, y: LowRank) -> float:
    """The Frobenius inner product Σ x_ij y_ij, from the two [r_x, r_y] Gram matrices of the factors."""
    if x.shape != y.shape:
        raise ValueError(f"shapes {x.shape} and {y.shape} have no inner product")
    return float(((x.left.double().T @ y.left.double()) * (x.right.double() @ y.right.double().T)).sum())


def norm(x: LowRank) -> float:
    """‖x‖_F; through QR, so that cancelling terms (a difference kept as a sum) do not leave the root of a rounding."""
    core, _, _ = _core(x)
    return float(torch.linalg.matrix_norm(core))


def singular_values(x: LowRank) -> torch.Tensor:
    """The min(m, r, n) leading singular values, descending, float64; the others are zero."""
    core, _, _ = _core(x)
    return torch.linalg.svdvals(core) if core.numel() else core.new_zeros(0)


def energy(x: LowRank, rank: int) -> float:
    """Share of ‖x‖² in the ``rank`` leading singular values, within [0, 1]; 1 for a zero matrix."""
    squares = singular_values(x).square()
    total = float(squares.sum())
    return min(float(squares[:rank].sum()) / total, 1.0) if total > 0 else 1.0


def recompress(x: LowRank, rank: int, input_moments: torch.Tensor | None = None) -> LowRank:
    """The best approximation of rank at most ``rank``, split evenly (QR of both factors, SVD of the small core).

    With ``input_moments``, the second moments E[input·inputᵀ] [n, n] of the inputs, the error that is minimal is that
    of the outputs over such inputs, E‖(x - x̂)·input‖², instead of ‖x - x̂‖². [n] are mean squares, of inputs that do
    not correlate. The even split is then that of x over whitened inputs. Raises NotFinite, ValueError for what cannot
    be second moments.
    """
    if rank < 0:
        raise ValueError(f"rank {rank} is negative")
    if input_moments is None:
        u, s, vt = _svd(x)
        return _cast(split_symmetric(u[:, :rank], s[:rank], vt[:rank]), _result_dtype(x))
    root = _root(input_moments, x.shape[1])
    right = x.right.double()
    u, s, vt = _svd(LowRank(x.left.double(), right * root if root.ndim == 1 else right @ root))
    best = split_symmetric(u[:, :rank], s[:rank], vt[:rank])
    return _cast(LowRank(best.left, _divide(best.right, root)), _result_dtype(x))


def project(x: LowRank, columns: torch.Tensor | None = None, rows: torch.Tensor | None = None) -> LowRank:
    """x with its columns projected onto span(``columns`` [m, k]) and its rows onto span(``rows`` [k, n]).

    Orthogonal projections; the bases need not be orthonormal nor of full rank.
    """
    left, right = x.left.double(), x.right.double()
    if columns is not None:
        basis = _orthonormal(columns)
        left = basis @ (basis.T @ left)
    if rows is not None:
        basis = _orthonormal(rows.T)
        right = (right @ basis) @ basis.T
    return _cast(LowRank(left, right), _result_dtype(x))


def split_symmetric(u: torch.Tensor, s: torch.Tensor, vt: torch.Tensor) -> LowRank:
    """``u·√s`` and ``√s·vt``: both factors have the same norm (PHLoRA, arXiv 2509.10971)."""
    root = s.clamp(min=0).sqrt()
    return LowRank(u * root, root[:, None] * vt)


def require_finite(*tensors: torch.Tensor) -> None:
    """Raises NotFinite when a tensor holds NaN or infinite values."""
    for tensor in tensors:
        # Both ends of the range carry NaN and infinity, and finding them is much faster than isfinite.
        if tensor.numel() and not all(bool(torch.isfinite(end)) for end in tensor.aminmax()):
            raise NotFinite(f"NaN or infinite values in a matrix of shape {list(tensor.shape)}")


def _core(x: LowRank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(core [a, b], ql [m, a], qr [n, b]) with x = ql @ core @ qr.T, in float64."""
    ql, rl = torch.linalg.qr(x.left.double())
    qr, rr = torch.linalg.qr(x.right.double().T)
    return rl @ rr.T, ql, qr


def _svd(x: LowRank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    core, ql, qr = _core(x)
    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    return ql @ u, s, vt @ qr.T


def _root(moments: torch.Tensor, width: int) -> torch.Tensor:
    """R with R·Rᵀ = moments, float64: its diagonal [n] for mean squares [n], lower triangular [n, n] for a matrix.

    A floor keeps the division back finite for inputs that were never active; they then cost next to nothing.
    """
    require_finite(moments)
    moments = moments.double()
    if moments.shape == (width,) and not bool((moments < 0).any()):
        return moments.clamp(min=1e-8 * _mean_or_one(moments)).sqrt()
    if moments.shape == (width, width) and torch.allclose(moments, moments.T, rtol=1e-5, atol=0.0):
        floor = 1e-6 * _mean_or_one(moments.diagonal())
        root: torch.Tensor
        root, failed = torch.linalg.cholesky_ex(moments + floor * torch.eye(width, dtype=moments.dtype))
        if not bool(failed):
            return root
    raise ValueError(
        f"input moments must be [{width}] mean squares or a positive semidefinite matrix [{width}, {width}], "
        f"not {list(moments.shape)} of other numbers"
    )


def _mean_or_one(squares: torch.Tensor) -> float:
    mean = float(squares.mean())
    return mean if mean > 0 else 1.0


def _divide(right: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """y with y·root = right."""
    if root.ndim == 1:
        return right / root
    divided: torch.Tensor = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return divided


def _orthonormal(basis: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis [m, k'] of the columns of [m, k], k' the numerical rank."""
    require_finite(basis)
    u, s, _ = torch.linalg.svd(basis.double(), full_matrices=False)
    largest = float(s[0]) if s.numel() else 0.0
    kept = int((s > largest * max(basis.shape) * torch.finfo(torch.float64).eps).sum())
    basis_of_range: torch.Tensor = u[:, :kept]
    return basis_of_range


def _result_dtype(*terms: LowRank) -> torch.dtype:
    doubles = any(torch.float64 in (t.left.dtype, t.right.dtype) for t in terms)
    return torch.float64 if doubles else torch.float32


def _cast(x: LowRank, dtype: torch.dtype) -> LowRank:
    return LowRank(x.left.to(dtype), x.right.to(dtype))
