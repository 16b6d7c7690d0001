"""Products with bfloat16 weights against dense float64, at every instruction set that this processor has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from readapt_kernels.cpu.arena import Arena
from readapt_kernels.cpu.launcher import BadLayout, CpuKernels
from readapt_kernels.cpu.library import load, usable_levels
from readapt_kernels.cpu.panels import Panels, pack, view_onednn
from readapt_testing.huge_pages import huge_bytes_at, huge_pages, refused

NAN = float("nan")
BF16 = torch.bfloat16
SHAPES = [(1, 1), (63, 2), (64, 32), (65, 33), (130, 1537), (577, 577), (960, 576), (2048, 96)]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 13, 32, 65]


@pytest.fixture
def kernels(level: str) -> CpuKernels:
    return CpuKernels(BF16, level)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def between_nans(x: Tensor) -> Tensor:
    """The same rows where anything that is read before or behind them is NaN."""
    memory = torch.full((x.numel() + 256,), NAN, dtype=x.dtype)
    inside = memory[128:-128].view_as(x)
    inside.copy_(x)
    return inside


def assert_product(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """One rounding to bfloat16 (half of 2⁻⁷), and one to float32 for each term of the sum."""
    added = 0.0 if bias is None else bias.double()
    expected = x.double() @ weight.double().t() + added
    terms = x.double().abs() @ weight.double().abs().t() + (0.0 if bias is None else bias.double().abs())
    bound = 2**-8 * expected.abs() + 2**-23 * (x.shape[1] + 2) * terms
    assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES, ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
def test_products_of_any_number_of_rows(kernels: CpuKernels, outputs: int, inputs: int, biased: bool) -> None:
    weight, bias = random(outputs, inputs), random(outputs, seed=1) if biased else None
    panels = pack(weight, Arena())
    for rows in ROWS:
        x = between_nans(random(rows, inputs, seed=rows))
        assert_product(kernels.linear(x, panels, bias), x, weight, bias)


def test_a_row_does_not_depend_on_its_companions(kernels: CpuKernels) -> None:
    """Bit for bit, so neither batching nor chunking of prompts changes what the base's products answer."""
    panels, x = pack(random(200, 577), Arena()), random(65, 577, seed=1)
    together = kernels.linear(x, panels, None)
    for rows in ROWS:
        assert torch.equal(kernels.linear(x[:rows].contiguous(), panels, None), together[:rows])


def test_a_result_does_not_depend_on_threads(kernels: CpuKernels) -> None:
    panels, x, before = pack(random(960, 576), Arena()), random(13, 576, seed=1), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(kernels.linear(x, panels, None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("outputs", [1, 63, 65])
def test_nothing_is_written_beyond_the_rows(level: str, outputs: int) -> None:
    library, panels, x = load(level), pack(random(outputs, 40), Arena()), random(7, 40, seed=1)
    assert library is not None
    memory = torch.full((7 * outputs + 256,), NAN, dtype=BF16)
    out = memory[128:-128]
    library.readapt_linear_bf16(x.data_ptr(), 7, 40, panels.address, outputs, None, out.data_ptr())
    assert out.isfinite().all()
    assert memory[:128].isnan().all()
    assert memory[-128:].isnan().all()


def test_what_is_not_finite_stays_so(kernels: CpuKernels) -> None:
    weight, x = random(70, 33), random(3, 33, seed=1)
    x[1, 32] = NAN
    found = kernels.linear(x, pack(weight, Arena()), None)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_weights_of_one_arena_do_not_overlap() -> None:
    """More than one mapping's worth, sizes that are no multiples of the alignment."""
    arena, kernels = Arena(), CpuKernels(BF16)
    weights = [random(257, 1000 + n, seed=n) for n in range(3)] + [random(40_000, 576), random(1, 1)]
    packed = [pack(weight, arena) for weight in weights]
    for weight, panels in zip(weights, packed, strict=True):
        assert panels.address % 64 == 0
        x = random(2, weight.shape[1], seed=9)
        assert_product(kernels.linear(x, panels, None), x, weight)


@pytest.mark.skipif(huge_pages() == "never", reason="the kernel gives no huge pages")
def test_weights_lie_in_huge_pages() -> None:
    """As the kernel counts them, unless it says that it had none left."""
    before = refused()
    taken = Arena().take(8 << 20, BF16).fill_(1.0)
    assert huge_bytes_at(taken.data_ptr()) >= taken.nbytes // 2 or refused() > before


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
@pytest.mark.skipif(usable_levels()[0] != "AVX512_BF16", reason="oneDNN packs bfloat16 for AVX-512 only")
@pytest.mark.parametrize(("outputs", "inputs"), [(960, 576), (576, 1536), (64, 96), (577, 577)], ids=str)
def test_memory_that_onednn_packed_is_read_where_it_lies(kernels: CpuKernels, outputs: int, inputs: int) -> None:
    weight, x = random(outputs, inputs), random(4, inputs, seed=1)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    panels = view_onednn(packed, weight)
    assert panels is not None
    assert_product(kernels.linear(x, panels, None), x, weight)
    assert view_onednn(packed, weight.flip(0)) is None
    assert view_onednn(packed, weight[:-64]) is None


def test_what_does_not_fit_isrefused() -> None:
    kernels, panels = CpuKernels(BF16), pack(random(8, 40), Arena())
    with pytest.raises(BadLayout, match="41"):
        kernels.linear(random(1, 41), panels, None)
    with pytest.raises(BadLayout, match="contiguous"):
        kernels.linear(random(40, 2).t(), panels, None)
    with pytest.raises(BadLayout, match="float32"):
        CpuKernels(torch.float32).linear(torch.zeros(1, 40), Panels(panels.memory, panels.address, 8, 40), None)
