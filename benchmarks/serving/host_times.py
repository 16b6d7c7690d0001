"""What the host does for a step's LoRA before the launches (H7), without a GPU: ours beside vLLM 0.33's.

    .venv/bin/python benchmarks/serving/host_times.py [--vllm-wheel DIR] [--rounds N]

``DIR`` as for ``kernel_times.py``. Llama-3.1-8B, 32 rows that decode, one adapter each. Ours is what a step of the
engine does: it finds the words of its adapters and writes the work list. The upload, a part of the step's one copy, is
not timed. vLLM's is ``prepare_tensors`` for tokens and for sampler rows, on CPU tensors; on a GPU its operations are
launches and four of them wait for the device. So this is no measurement of H7, which ``kernel_times.py`` makes. In turn
in every round; the least, and the median with half the distance between the largest and the smallest.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch
from lifting import NotLiftable, VllmOps, lift_vllm
from lora_cases import SCALE, Batch, decode_batches
from measured import Measured, markdown

from readapt_runtime.engine.core import ResidentAdapter, Segment, Variant
from readapt_runtime.engine.pool import Entry, PageKind, PageLayout, PagePool
from readapt_runtime.model.adapter_image import AdapterImage, HostPages, plan_pages
from readapt_runtime.model.config import DecoderConfig
from readapt_runtime.model.rotary import Rotary
from readapt_runtime.model.triton_lora import AdapterPlaces, StepWork

CPU = torch.device("cpu")
LLAMA_8B = DecoderConfig(
    model_type="llama",
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_positions=131072,
    rms_norm_eps=1e-5,
    tied_embeddings=False,
    rotary=Rotary((1.0,), 1.0),
    rotary_layers=(True,) * 32,
    biased=frozenset(),
    qk_norm=False,
    sliding_window=None,
)
_MAX_TOKENS, _MAX_ROWS, _MAX_RANK = 2048, 256, 64
_POOL_PAGES = 32768
_CALLS = 100
"""Per value; a step takes some microseconds."""

Step = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> int:
    told = _parser().parse_args(arguments)
    try:
        vllm = lift_vllm(told.vllm_wheel) if told.vllm_wheel else None
    except NotLiftable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    lines = [["batch", "what", "least µs", "µs", "÷ Readapt"]]
    for batch in decode_batches():
        seconds = host_seconds(contenders(batch, LLAMA_8B, vllm), told.rounds)
        ours = next(iter(seconds.values()))
        for name, measured in seconds.items():
            micros = Measured(tuple(1e6 * s for s in measured.values))
            lines.append([batch.name, name, f"{min(micros.values):.0f}", micros.text(0), measured.per(ours).text(2)])
    sys.stdout.write(markdown(lines))
    return 0


def contenders(batch: Batch, config: DecoderConfig, vllm: VllmOps | None) -> dict[str, Step]:
    """Ours for a batch of which no adapter was in the one before comes first."""
    pool = PagePool(layout := PageLayout.of(config), layout.page_bytes(torch.bfloat16), torch.bfloat16, CPU)
    places = AdapterPlaces(config, pool, _MAX_TOKENS, _MAX_ROWS, _MAX_RANK)
    work = StepWork(places, torch.zeros(places.layout.num_words, dtype=torch.int32))
    variants = {rank: _variant(rank, config) for rank in batch.ranks}
    mixes = [_segments(batch, variants, seed) for seed in range(2)]
    turns, first = cycle(mixes), mixes[0][0].adapter
    found: dict[str, Step] = {
        "Readapt, other adapters": lambda: work.fill(next(turns), batch.tokens),
        "Readapt, the same again": lambda: work.fill(mixes[0], batch.tokens),
        "Readapt, one adapter's words, once a stay": lambda: places.of(replace(first)),
    }
    if vllm is not None:
        meta = vllm.metadata.LoRAKernelMeta.make(len(batch.ranks), _MAX_TOKENS, CPU)
        found["vLLM, on CPU tensors"] = partial(_prepare_twice, meta.prepare_tensors, batch.mapping(CPU))
    return found


def host_seconds(steps: Mapping[str, Step], rounds: int) -> dict[str, Measured]:
    """Of one call; the first round is left out."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(_CALLS):
                step()
            found[name].append((time.perf_counter() - started) / _CALLS)
    return {name: Measured(tuple(values[1:])) for name, values in found.items()}


def _prepare_twice(prepare: Callable[[torch.Tensor], None], mapping: torch.Tensor) -> None:
    prepare(mapping)
    prepare(mapping)


def _segments(batch: Batch, variants: Mapping[int, Variant], seed: int) -> tuple[Segment, ...]:
    """Of adapters that nobody else has, on pages in random order."""
    pages = iter(random.Random(seed).sample(range(_POOL_PAGES), sum(variants[r].image.num_pages for r in batch.ranks)))
    adapters = [
        ResidentAdapter(variant, Entry(PageKind.ADAPTER, tuple(islice(pages, variant.image.num_pages))), None)
        for variant in (variants[rank] for rank in batch.ranks)
    ]
    return tuple(Segment(adapters[number], start, stop) for number, start, stop in batch.segments())


def _variant(rank: int, config: DecoderConfig) -> Variant:
    """An adapter of all modules, whose factors nobody reads."""
    shapes = config.module_shapes.items()
    modules = {name: _Module(_Shape((rank, width)), _Shape((out, rank))) for name, (out, width) in shapes}
    plan = plan_pages(modules, config, PageLayout.of(config).elements)
    return Variant(f"r{rank}", f"sha256:{'0' * 64}", AdapterImage(plan.layers, plan.rank, plan.num_pages, _unread))


@dataclass(frozen=True, slots=True)
class _Shape:
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Module:
    a: _Shape
    b: _Shape
    scale: float = SCALE


def _unread() -> HostPages:
    raise AssertionError("words need no factors")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-wheel", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=20)
    return parser


if __name__ == "__main__":
    sys.exit(main())
