"""What sm_90 makes of the attention kernels and the KV write in bf16, without a GPU."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch

from readapt_kernels.attention.decode.launcher import DecodeWorkspace, paged_decode, plan_decode
from readapt_kernels.attention.operands import HeadShape, Sequences
from readapt_kernels.attention.prefill.launcher import PrefillWorkspace, paged_prefill, plan_prefill
from readapt_kernels.kv_write.launcher import kv_write
from readapt_testing.triton_modes import Compiled, Launch, compiled, recorded

# query heads, KV heads, head size: Llama-3.1-8B, Qwen2-0.5B, SmolLM2-135M, and the odd ends of the tables
SHAPES = [HeadShape(32, 8, 128), HeadShape(14, 2, 64), HeadShape(9, 3, 64), HeadShape(16, 2, 256), HeadShape(8, 8, 80)]
PAGES, LAYERS, PAGE_TOKENS, TOKENS, MAX_SEQS = 65_536, 32, 16, 256, 256
META = torch.device("meta")


def launches(shape: HeadShape) -> list[Launch]:
    """One step's launches on a pool of a real server's size; tensors without memory, for nothing runs."""
    elements = 2 * PAGE_TOKENS * shape.kv_heads * shape.dim
    pool = torch.empty(PAGES, LAYERS, elements, dtype=torch.bfloat16, device=META)
    kv = pool[:, 5].view(PAGES, 2, PAGE_TOKENS, shape.kv_heads, shape.dim)
    fused = torch.empty(TOKENS, shape.heads + 2 * shape.kv_heads, shape.dim, dtype=torch.bfloat16, device=META)
    q, k, v = fused.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    out = torch.empty(TOKENS, shape.heads, shape.dim, dtype=torch.bfloat16, device=META)
    buffers = (torch.empty(MAX_SEQS, dtype=torch.int32, device=META) for _ in range(3))
    one = torch.empty(1, dtype=torch.int32, device=META)
    seqs = Sequences(one, *buffers, torch.empty(MAX_SEQS, 512, dtype=torch.int32, device=META))
    decode = DecodeWorkspace.allocate(shape, MAX_SEQS, torch.bfloat16, META, programs=264)
    prefill = PrefillWorkspace.allocate(shape, TOKENS, MAX_SEQS, torch.bfloat16, META)
    with recorded() as made:
        kv_write(k, v, kv, torch.empty(TOKENS, dtype=torch.int32, device=META), one)
        plan_decode(seqs, decode)
        paged_decode(q, kv, seqs, out, 0.125, decode)
        plan_prefill(seqs, prefill)
        paged_prefill(q, kv, seqs, out, 0.125, prefill)
    return made


@cache
def all_compiled() -> dict[HeadShape, dict[str, Compiled]]:
    wanted = {shape: launches(shape) for shape in SHAPES}
    results = iter(compiled([launch for made in wanted.values() for launch in made]))
    return {shape: {launch.kernel: next(results) for launch in made} for shape, made in wanted.items()}


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape.heads}-{shape.kv_heads}-{shape.dim}")
def kernels(request: pytest.FixtureRequest) -> dict[str, Compiled]:
    return all_compiled()[request.param]


def lines(ptx: str, pattern: str) -> list[int]:
    return [n for n, line in enumerate(ptx.splitlines()) if re.search(pattern, line)]


def test_nothing_spills_and_two_decode_programs_share_a_multiprocessor(kernels: dict[str, Compiled]) -> None:
    assert {name: made.spill_bytes for name, made in kernels.items()} == dict.fromkeys(kernels, 0)
    decode = kernels["decode_kernel"]
    assert 2 * 128 * decode.registers <= 65_536
    assert 2 * decode.shared_bytes <= 227 * 1024
    assert kernels["prefill_kernel"].shared_bytes <= 227 * 1024


def test_keys_and_values_are_loaded_16_bytes_at_a_time(kernels: dict[str, Compiled]) -> None:
    decode, prefill = kernels["decode_kernel"].ptx, kernels["prefill_kernel"].ptx

    assert set(re.findall(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", decode)) == {"0x10"}
    assert len(lines(decode, r"cp\.async\.cg")) >= 24, "pipelined: prologue and loop"
    assert lines(prefill, r"ld\.global\.v4\.b32")
    for made in kernels.values():
        assert not lines(made.ptx, r"ld\.global\S*\.(b|u)16|st\.global\S*\.(b|u)16")


def test_decode_multiplies_with_mma_and_prefill_with_wgmma(kernels: dict[str, Compiled]) -> None:
    assert lines(kernels["decode_kernel"].ptx, r"mma\.sync\.aligned\.m16n8k16\S*bf16")
    assert lines(kernels["prefill_kernel"].ptx, r"wgmma\.mma_async\S*bf16")


def test_no_wgmma_is_in_flight_while_other_work_runs(kernels: dict[str, Compiled]) -> None:
    """Weights are a register operand: assemblers before CUDA 13.3 may reuse such registers too early."""
    text = [
        line.strip()
        for line in kernels["prefill_kernel"].ptx.splitlines()
        if line.strip() and not re.match(r"\s*(//|\.loc|\$|mov|cvt\.u64\.u32)", line)
    ]
    commits = [n for n, line in enumerate(text) if line.startswith("wgmma.commit_group")]
    operands = [next(text[i] for i in range(n, 0, -1) if "wgmma.mma_async" in text[i]) for n in commits]
    from_registers = [n for n, line in zip(commits, operands, strict=True) if "}, {" in line]

    assert from_registers
    assert all(text[n + 1].startswith("wgmma.wait_group.sync.aligned 0") for n in from_registers)


def test_planes_are_stored_before_the_ticket_and_read_after_it_past_the_first_cache(
    kernels: dict[str, Compiled],
) -> None:
    ptx = kernels["decode_kernel"].ptx
    (ticket,) = lines(ptx, r"\batom\.")
    assert lines(ptx, r"atom\.global\.gpu\.acq_rel\.add\.u32") == [ticket]
    assert not lines(ptx, r"\bred\.")
    barriers, stores = lines(ptx, r"bar\.sync"), lines(ptx, r"st\.global")
    past_cache, loads = lines(ptx, r"ld\.global\.cg"), lines(ptx, r"ld\.global")

    planes_stored = max(n for n in stores if n < ticket)
    assert any(planes_stored < n < ticket for n in barriers), "stores, barrier, ticket"
    assert past_cache
    assert all(n > ticket for n in past_cache)
    assert any(ticket < n < past_cache[0] for n in barriers), "ticket, barrier, loads"
    between = [n for n in loads if past_cache[0] <= n <= past_cache[-1]]
    assert between == past_cache
    # blocks of PTX may stand in any order; the order of the program is that of the IR
    _, after = kernels["decode_kernel"].ttir.split("tt.atomic_rmw add, acq_rel, gpu")
    assert after.rindex("cacheModifier = cg") < after.index("tt.store %ticket"), "the ticket is reset after the join"


def test_page_offsets_are_computed_in_64_bits() -> None:
    """Pages times their stride pass 2³¹ elements here; the product is formed after widening, never before."""
    for shape in SHAPES:
        assert (PAGES - 1) * LAYERS * 2 * PAGE_TOKENS * shape.kv_heads * shape.dim > 2**31
    for made in all_compiled().values():
        for name in ("decode_kernel", "prefill_kernel"):
            ttir = made[name].ttir
            pages = re.findall(r"(%page\w*) = arith\.extsi (%page\w*) : tensor<\d+xi32> to tensor<\d+xi64>", ttir)
            assert pages
            for wide, narrow in pages:
                assert re.search(rf"arith\.muli {wide}, %\w+ : tensor<\d+xi64>", ttir)
                assert not re.search(rf"arith\.muli .*{narrow}\b.* : tensor<\d+xi32>", ttir)
        ttir = made["kv_write_kernel"].ttir
        wide = re.search(r"(%page\w*) = arith\.extsi %page\w* : i32 to i64", ttir)
        assert wide
        assert re.search(rf"arith\.muli {wide[1]}, %\w+ : i64", ttir)
        assert not re.search(r"arith\.muli .*%page_stride.* : i32", ttir)


def test_a_stride_beyond_32_bits_is_taken_as_64_bits() -> None:
    shape = SHAPES[0]
    made = launches(shape)
    far = torch.empty_strided(
        (4, 2, PAGE_TOKENS, 8, 128), (2**33, PAGE_TOKENS * 1024, 1024, 128, 1), dtype=torch.bfloat16, device=META
    )
    q = torch.empty(TOKENS, 8, 128, dtype=torch.bfloat16, device=META)
    slots = torch.empty(TOKENS, dtype=torch.int32, device=META)
    with recorded() as further:
        kv_write(q, q, far, slots, slots[:1])

    assert made[0].signature["page_stride"] == "i32"
    assert further[0].signature["page_stride"] == "i64"
