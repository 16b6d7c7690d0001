"""Randomized SVD against LAPACK in float64."""

from __future__ import annotations

import pytest
import torch

from readapt_runtime.lowrank import NotFinite, decompose, decomposition

ROWS, COLUMNS = 200, 320


def with_spectrum(values: torch.Tensor, seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = values.numel()
    u = torch.linalg.qr(torch.randn(rows, count, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, count, generator=generator, dtype=torch.float64))[0]
    return (u * values.double()) @ v.T


SPECTRA = {
    "fast decay": torch.logspace(0, -8, ROWS),
    "slow decay": torch.linspace(1, 0.5, ROWS),
    "flat": torch.ones(ROWS),
    "steps of tied values": torch.cat([torch.full((10,), 3.0), torch.full((10,), 1.0), torch.full((180,), 0.01)]),
    "rank five": torch.cat([torch.linspace(2, 1, 5), torch.zeros(ROWS - 5)]),
    "tiny": torch.logspace(0, -3, ROWS) * 1e-18,
    "huge": torch.logspace(0, -3, ROWS) * 1e18,
}


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
@pytest.mark.parametrize("rank", [1, 32])
@pytest.mark.parametrize("transposed", [False, True], ids=["wide", "tall"])
def test_the_energy_found_is_within_a_thousandth_of_the_best(
    spectrum: torch.Tensor, rank: int, transposed: bool
) -> None:
    matrix = with_spectrum(spectrum)
    matrix = matrix.T.contiguous() if transposed else matrix
    found = decompose(matrix.float(), rank)
    total = float(matrix.square().sum())
    best = float(spectrum.double()[:rank].square().sum()) / total
    product = found.u.double() * found.s.double() @ found.vt.double()
    left = float((matrix - product).square().sum()) / total
    # ‖M - USV‖² = ‖M‖² - Σσ² holds only for true singular triplets of an orthonormal projection.
    assert left == pytest.approx(1 - float(found.s.double().square().sum()) / total, abs=1e-5)
    assert best - 1e-3 <= 1 - left <= best + 1e-6
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(found.u.double().T @ found.u.double(), identity, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.vt.double() @ found.vt.double().T, identity, rtol=0, atol=1e-4)


def test_values_that_do_not_settle_lead_to_the_full_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_spectrum(SPECTRA["fast decay"]).float()
    assert decompose(matrix, 8).iterations > 1
    monkeypatch.setattr(decomposition, "_MAX_ITERATIONS", 1)
    found = decompose(matrix, 8)
    assert found.iterations == 0
    torch.testing.assert_close(found.s, torch.linalg.svdvals(matrix)[:8], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (1, 50)])
def test_a_rank_above_the_shape_gives_all_there_is(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    found = decompose(matrix, 64)
    assert found.s.numel() == min(shape)
    factors = found.factors(64)
    torch.testing.assert_close(factors.left @ factors.right, matrix, rtol=1e-4, atol=1e-5)


def test_zero_has_zero_singular_values() -> None:
    found = decompose(torch.zeros(200, 300), 8)
    assert found.s.tolist() == [0.0] * 8
    assert not bool((found.factors(8).left @ found.factors(8).right).any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    matrix = with_spectrum(SPECTRA["steps of tied values"]).to(dtype)
    found = decompose(matrix, 20)
    expected = torch.linalg.svdvals(matrix.double())[:20]
    torch.testing.assert_close(found.s.double(), expected, rtol=1e-3, atol=1e-4)
    assert found.s.dtype == torch.float32


def test_equal_input_gives_equal_bytes() -> None:
    matrix = with_spectrum(SPECTRA["slow decay"]).float()
    first, second = decompose(matrix, 16, seed=7), decompose(matrix, 16, seed=7)
    assert torch.equal(first.u, second.u)
    assert torch.equal(first.s, second.s)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    matrix = torch.ones(200, 300)
    matrix[150, 7] = value
    with pytest.raises(NotFinite):
        decompose(matrix, 8)
