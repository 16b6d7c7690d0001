"""Compiles what the LoRA launcher launches for sm_90, in bf16, without a GPU.

    python -m readapt_testing.sm90 > OUT.json

Runs in a process of its own, since the interpreter is off here. The launcher's own calls are recorded, and Triton's
own binder turns their arguments into signature, constants and alignment, so what is compiled is what a GPU would run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from readapt_kernels.lora import launcher
from readapt_kernels.lora.records import LinearRows, SliceRows, describe, place
from readapt_kernels.lora.shapes import Limits, LinearShape, LoraShapes
from readapt_kernels.lora.work import Segments

TARGET = GPUTarget("cuda", 90, 32)
# Llama-3.1-8B, 16 tokens of KV a page; and SmolLM2-135M, whose widths only 64 divides.
LLAMA = LoraShapes(
    (LinearShape(4096, (4096, 1024, 1024)), LinearShape(14336, (4096,)), LinearShape(4096, (14336, 14336))),
    num_layers=32,
    page_elements=32768,
)
SMOL = LoraShapes((LinearShape(576, (576, 192, 192)), LinearShape(1536, (576,))), 30, 6144)
LIMITS = Limits(max_segments=2, max_pages=256, max_tokens=512, max_rank=64)
WIDE = Limits(max_segments=2, max_pages=512, max_tokens=512, max_rank=128)


@dataclass(frozen=True, slots=True)
class Case:
    """A batch of one adapter, all slices at one rank."""

    shapes: LoraShapes
    tokens: int
    rank: int
    limits: Limits = LIMITS


CASES = {
    "llama-small": Case(LLAMA, 8, 16),
    "llama-large": Case(LLAMA, 512, 64),
    "llama-large-r8": Case(LLAMA, 512, 8),
    "llama-large-r96": Case(LLAMA, 512, 96, WIDE),
    "llama-large-r128": Case(LLAMA, 512, 128, WIDE),
    "smol-small": Case(SMOL, 8, 16),
    "smol-large": Case(SMOL, 512, 64),
}
NAMES = tuple(
    f"{name}-{kernel}-{linear}"
    for name, case in CASES.items()
    for kernel in ("shrink", "expand")
    for linear in range(len(case.shapes.linears))
)


class Recorder:
    """Stands in for a kernel and keeps the arguments of its launches."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launches.append((args, kwargs))


def launches(case: Case) -> Iterator[tuple[str, Any, tuple[Any, ...], dict[str, Any]]]:
    """``(name, kernel, arguments)`` of every linear, shrink and expand."""
    shrink, expand = Recorder(), Recorder()
    shapes, tokens = case.shapes, case.tokens
    layer = [_rows(shape, case.rank) for shape in shapes.linears]
    record = describe([layer] * shapes.num_layers, shapes)
    pages = tuple(range(-(-record.num_chunks // shapes.chunks_per_page)))
    pool = torch.empty(1, shapes.num_layers, shapes.page_elements, dtype=torch.bfloat16)
    with (
        patch.object(launcher, "is_available", lambda device: True),
        patch.object(launcher, "shrink_kernel", shrink),
        patch.object(launcher, "expand_kernel", expand),
    ):
        kernels = launcher.LoraKernels(pool, shapes, case.limits)
        kernels.plan(Segments.of([(place(record, pages, shapes, case.limits), 0, tokens)]), tokens)
        for i, shape in enumerate(shapes.linears):
            kernels.shrink(3, i, torch.empty(tokens, shape.in_features, dtype=torch.bfloat16))
            kernels.expand_(3, i, torch.empty(tokens, shape.out_features, dtype=torch.bfloat16))
    for name, kernel, recorder in (
        ("shrink", launcher.shrink_kernel, shrink),
        ("expand", launcher.expand_kernel, expand),
    ):
        for i, (args, kwargs) in enumerate(recorder.launches):
            yield f"{name}-{i}", kernel, args, kwargs


def _rows(shape: LinearShape, rank: int) -> LinearRows:
    """All slices at one rank. Offsets do not matter to the compiler."""
    return LinearRows(0, tuple(SliceRows(rank * s, rank, 0, 1.0) for s in range(len(shape.out_sizes))))


def compile_launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    backend = make_backend(TARGET)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*args, **kwargs)
    parsed, signature, constants, attrs = kernel._pack_args(backend, options, bound, specialization, options)
    return triton.compile(ASTSource(kernel, signature, constants, attrs), target=TARGET, options=parsed.__dict__)


def resources(ptx: str) -> dict[str, int]:
    """Registers a thread and bytes of spills, as the assembler counts them."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [triton.knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", str(source), "-o", str(source) + ".cubin"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    return {"registers": int(re.findall(r"Used (\d+) registers", said)[0]), "spills": sum(map(int, spills))}


def main() -> None:
    found = {}
    for case_name, case in CASES.items():
        for name, kernel, args, kwargs in launches(case):
            compiled = compile_launch(kernel, args, kwargs)
            ptx = compiled.asm["ptx"]
            found[f"{case_name}-{name}"] = {
                "ptx": ptx,
                "ttir": compiled.asm["ttir"],
                "shared": compiled.metadata.shared,
                "constants": {k: v for k, v in kwargs.items() if isinstance(v, int)},
                **resources(ptx),
            }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
