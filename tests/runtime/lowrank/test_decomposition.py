"""Randomized SVD against LAPACK in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from readapt_runtime.lowrank import Decomposition, NotFinite, decompose, decompose_all, decomposition

ROWS, COLUMNS = 200, 320


def with_spectrum(values: torch.Tensor, seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = values.numel()
    u = torch.linalg.qr(torch.randn(rows, count, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, count, generator=generator, dtype=torch.float64))[0]
    return (u * values.double()) @ v.T


SPECTRA = {
    "fast decay": torch.logspace(0, -8, ROWS),
    "beyond float32": torch.logspace(0, -40, ROWS, dtype=torch.float64),
    "slow decay": torch.linspace(1, 0.5, ROWS),
    "power law": torch.arange(1, ROWS + 1, dtype=torch.float64) ** -0.5,
    "flat": torch.ones(ROWS),
    "steps of tied values": torch.cat([torch.full((10,), 3.0), torch.full((10,), 1.0), torch.full((180,), 0.01)]),
    "tied across the rank": torch.cat([torch.full((60,), 1.0), torch.full((140,), 0.2)]),
    "spikes over noise": torch.cat([torch.full((3,), 100.0), torch.linspace(1.1, 0.9, ROWS - 3)]),
    "rank five": torch.cat([torch.linspace(2, 1, 5), torch.zeros(ROWS - 5)]),
    "rank forty": torch.cat([torch.linspace(2, 1, 40), torch.zeros(ROWS - 40)]),
    "tiny": torch.logspace(0, -3, ROWS) * 1e-18,
    "huge": torch.logspace(0, -3, ROWS) * 1e18,
}


def check(found: Decomposition, matrix: torch.Tensor, rank: int) -> None:
    """The triplets are true ones, and their error is within a hundredth of the best that any have."""
    total = float(matrix.square().sum())
    product = found.u.double() * found.s.double() @ found.vt.double()
    left = float((matrix - product).square().sum()) / total
    best = float(torch.linalg.svdvals(matrix)[rank:].square().sum()) / total
    # ‖M - USV‖² = ‖M‖² - Σσ² holds only for true singular triplets of an orthonormal projection.
    assert left == pytest.approx(1 - float(found.s.double().square().sum()) / total, abs=1e-5)
    assert best**0.5 * (1 - 1e-6) - 1e-5 <= left**0.5 <= 1.01 * best**0.5 + 1e-4
    assert bool((found.s.diff() <= 0).all())
    there = found.s > 1e-5 * found.s[0]
    identity = torch.eye(int(there.sum()), dtype=torch.float64)
    for side in (found.u[:, there].double(), found.vt[there].double().T):
        torch.testing.assert_close(side.T @ side, identity, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
@pytest.mark.parametrize("rank", [1, 32])
@pytest.mark.parametrize("transposed", [False, True], ids=["wide", "tall"])
def test_the_error_is_within_a_hundredth_of_the_best(spectrum: torch.Tensor, rank: int, transposed: bool) -> None:
    matrix = with_spectrum(spectrum)
    matrix = matrix.T.contiguous() if transposed else matrix
    check(decompose(matrix.float(), rank), matrix, rank)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(-3, 0),
    st.integers(0, 60),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_decay_over_any_number_of_spikes_is_found(seed: int, decay: float, spikes: int, dtype: torch.dtype) -> None:
    values = torch.arange(1, 129, dtype=torch.float64) ** decay
    values[:spikes] += 10
    matrix = with_spectrum(values, seed, rows=128, columns=160).to(dtype)
    check(decompose(matrix, 8, seed), matrix.double(), 8)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_a_change_of_few_rows_is_counted_once(rows: int) -> None:
    """Exact zeros leave a subspace nothing to grow into; what is made up instead must not be found twice."""
    matrix = torch.zeros(ROWS, COLUMNS)
    matrix[3 : 3 + rows, 5:90] = torch.randn(rows, 85, generator=torch.Generator().manual_seed(0))
    check(decompose(matrix, 32), matrix.double(), 32)


def test_matrices_in_a_stack_are_found_as_if_alone() -> None:
    """What a GPU does with all modules of one shape; some need more steps, one is zero, one has no full rank."""
    names = ("fast decay", "flat", "rank five", "spikes over noise", "huge")
    stack = torch.stack([with_spectrum(SPECTRA[n], seed=at).float() for at, n in enumerate(names)])
    stack = torch.cat([stack, torch.zeros(1, ROWS, COLUMNS)])
    energies = stack.double().square().sum(dim=(1, 2))
    together = decompose_all(stack, 32, list(range(6)), energies)
    for at, name in enumerate(names):
        check(together[at], stack[at].double(), 32)
        alone = decompose(stack[at], 32, seed=at)
        torch.testing.assert_close(together[at].s, alone.s, rtol=1e-2, atol=1e-5 * float(alone.s[0]))
        assert together[at].iterations >= alone.iterations, name
    assert together[5].s.tolist() == [0.0] * 32


def test_values_that_do_not_settle_lead_to_the_full_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_spectrum(SPECTRA["power law"]).float()
    assert decompose(matrix, 8).iterations > 1
    monkeypatch.setattr(decomposition, "_MAX_BLOCKS", 1)
    found = decompose(matrix, 8)
    assert found.iterations == 0
    torch.testing.assert_close(found.s, torch.linalg.svdvals(matrix)[:8], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
def test_the_full_decomposition_is_lapacks(spectrum: torch.Tensor) -> None:
    matrix = with_spectrum(spectrum, columns=260).float()
    found = decompose(matrix, 150)
    assert found.iterations == 0
    expected = torch.linalg.svdvals(matrix.double())[:150]
    torch.testing.assert_close(found.s.double(), expected, rtol=1e-4, atol=2e-6 * float(expected[0]))
    check(found, matrix.double(), 150)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (1, 50)])
def test_a_rank_above_the_shape_gives_all_there_is(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    found = decompose(matrix, 64)
    assert found.s.numel() == min(shape)
    factors = found.factors(64)
    torch.testing.assert_close(factors.left @ factors.right, matrix, rtol=1e-4, atol=1e-5)


def test_zero_has_zero_singular_values() -> None:
    for shape in ((200, 300), (20, 30)):
        found = decompose(torch.zeros(shape), 8)
        assert found.s.tolist() == [0.0] * 8
        assert not bool((found.factors(8).left @ found.factors(8).right).any())


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
