"""What the compiler makes of the kernels for sm_90 in bf16: no GPU, and no interpreter."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest

from readapt_testing.sm90 import NAMES
from readapt_testing.triton_modes import compiled_by

THREADS = 128
VECTOR = 16
BF16 = 2


@dataclass(frozen=True, slots=True)
class Compiled:
    ptx: str
    ttir: str
    shared: int
    registers: int
    spills: int
    constants: dict[str, int]

    @property
    def weight_tile(self) -> int:
        """Bytes of weights per step of the inner loop."""
        return self.constants["BLOCK_C"] * self.constants.get("BLOCK_K", self.constants.get("BLOCK_N", 0)) * BF16

    @property
    def row_tile(self) -> int:
        """Bytes of x or of the bridge per step."""
        return self.constants["BLOCK_T"] * self.constants.get("BLOCK_K", self.constants["BLOCK_C"]) * BF16

    def positions(self, instruction: str) -> list[int]:
        return [match.start() for match in re.finditer(instruction, self.ptx)]


@pytest.fixture(scope="module")
def kernels() -> dict[str, Compiled]:
    return {name: Compiled(**found) for name, found in json.loads(compiled_by("readapt_testing.sm90")).items()}


@pytest.fixture(params=NAMES)
def kernel(request: pytest.FixtureRequest, kernels: dict[str, Compiled]) -> Compiled:
    return kernels[request.param]


def test_every_launch_was_compiled(kernels: dict[str, Compiled]) -> None:
    assert sorted(kernels) == sorted(NAMES)


def test_nothing_spills(kernel: Compiled) -> None:
    assert kernel.spills == 0


def test_weights_come_16_bytes_at_a_time(kernel: Compiled) -> None:
    widths = re.findall(r"cp\.async\.c[ga]\.shared\.global \[[^\]]*\], \[[^\]]*\], (0x\w+)", kernel.ptx)
    # 4 bytes: page indices, and the bridge of 16 rows, which has one word per thread.
    assert set(widths) == {"0x4", "0x10"}
    assert not kernel.positions(r"ld\.global\S*\.b(8|16)\b")
    rows = kernel.row_tile if kernel.row_tile >= THREADS * VECTOR else 0
    per_step = (kernel.weight_tile + rows) // (THREADS * VECTOR)
    steps, rest = divmod(widths.count("0x10"), per_step)
    assert rest == 0
    assert steps >= 3  # at least two before the loop, one in it


def test_at_least_two_weight_tiles_are_on_their_way(kernel: Compiled) -> None:
    assert kernel.shared >= 2 * (kernel.weight_tile + kernel.row_tile)


def test_page_times_stride_is_a_product_of_64_bits(kernel: Compiled) -> None:
    (wide,) = set(re.findall(r"(%\S+) = arith\.extsi %page\S* : tensor<\d+xi32> to tensor<\d+xi64>", kernel.ttir))
    assert re.search(rf"arith\.muli {wide}, %\S+ : tensor<\d+xi64>", kernel.ttir)


@pytest.mark.parametrize("name", [name for name in NAMES if "small" in name])
def test_small_tiles_use_mma(kernels: dict[str, Compiled], name: str) -> None:
    assert kernels[name].positions(r"mma\.sync\.aligned\.m16n8k16\S*f32\.bf16\.bf16\.f32")


@pytest.mark.parametrize("name", [name for name in NAMES if "large" in name])
def test_large_tiles_use_wgmma_with_both_operands_in_shared_memory(kernels: dict[str, Compiled], name: str) -> None:
    """A first operand in registers is miscompiled by the assemblers before CUDA 13.3."""
    products = re.findall(r"wgmma\.mma_async\S* (\{[^}]*\}), (\S+), (\S+),", kernels[name].ptx)

    assert products
    assert all(a.startswith("%rd") and b.startswith("%rd") for _, a, b in products)


@pytest.mark.parametrize("name", [n for n in NAMES if "small-shrink" in n and n != "smol-small-shrink-0"])
def test_the_last_split_to_arrive_sees_what_all_others_wrote(kernels: dict[str, Compiled], name: str) -> None:
    """Plane stores, barrier, ticket, barrier, reads past L1: the interpreter cannot show this race."""
    kernel = kernels[name]
    (ticket,) = kernel.positions(r"atom\.global\.gpu\.acq_rel\.add\.u32")
    plane = max(at for at in kernel.positions(r"st\.global") if at < ticket)
    barriers = kernel.positions(r"bar\.sync")
    reads = [at for at in kernel.positions(r"ld\.global") if at > ticket]

    assert any(plane < at < ticket for at in barriers)
    assert any(ticket < at < min(reads) for at in barriers)
    assert reads == kernel.positions(r"ld\.global\.cg\.")
    assert len(reads) == kernel.constants["SPLITS"]


def test_one_split_needs_no_ticket(kernels: dict[str, Compiled]) -> None:
    single = [k for name, k in kernels.items() if k.constants.get("SPLITS") == 1]

    assert single
    assert not any(k.positions(r"atom\.") for k in single)
