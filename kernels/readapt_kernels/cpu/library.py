"""The compiled kernels: which library fits this processor, and the C signatures of its functions."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from readapt_kernels.cpu.build import LEVELS, SOURCES, NoCompiler, cache_folder, compile_level, library_name

log = logging.getLogger(__name__)

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}
HEAD_DIMS = frozenset({16, 32, 64, 80, 96, 128, 256})
MAX_GROUP = 16
BLOCK_TOKENS = 16
"""Tokens of a KV block: the lanes of a vector."""

FACTORS = np.dtype(
    [(name, np.int64) for name in ("a", "b", "rank", "rank_start", "out_start", "out_size")] + [("scale", np.float64)]
)
"""One module of one adapter in one layer: addresses of contiguous rank rows A ``[rank, in]``, Bᵀ ``[rank, size]``."""
SLICES = 3
"""Most modules of a fused linear."""
SEGMENT = np.dtype([(name, np.int64) for name in ("factors", "start", "stop")])
"""Neighbouring tokens of one adapter, and the address of its FACTORS ``[layers, linears, SLICES]``."""

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "add_norm": [_P, _P, _P, _P, _I, _I, _F],
    "silu_mul": [_P, _P, _I, _I],
    "rotate_write": [_P, _I, _I, _I, _I, _P, _P, _P, _P, _I, _P, _I, _I, _I, _P, _P, _F],
    "attend": [_P, _I, _P, _P, _I, _I, _I, _I, _P, _P, _I, _P, _I, _I, _I, _F],
    "argmax": [_P, _I, _I, _P, _P],
    "draw": [_P, _I, _P, _I, _P, _P, _P, _P, _P],
    "lora": [_P, _I, _I, _I, _P, _I, _P, _I, _P, _I],
}
_LINEAR: list[Any] = [_P, _I, _I, _P, _I, _P, _P]


def usable_levels() -> tuple[str, ...]:
    """Those of ``build.LEVELS`` that this processor can run, highest first."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and torch.cpu.get_capabilities()["avx512_bf16"]:
        capability = "AVX512_BF16"
    order = list(LEVELS)
    return tuple(order[order.index(capability if capability in LEVELS else "DEFAULT") :])


@cache
def load(level: str | None = None) -> ctypes.CDLL | None:
    """The library for this processor: the image's, the cache's, or built now; None, with a warning, without any.

    ``level``: one of ``usable_levels``, by default the highest.
    """
    level = level or usable_levels()[0]
    try:
        built = SOURCES / library_name(level)
        path = built if built.is_file() else compile_level(level, cache_folder())
        return _declared(path)
    except (NoCompiler, OSError) as error:
        log.warning("decoding without the C++ kernels, which is several times slower", extra={"fault": str(error)})
        return None


def _declared(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        for suffix in DTYPES.values():
            function = getattr(library, f"readapt_{name}_{suffix}")
            function.argtypes, function.restype = arguments, None
    library.readapt_linear_bf16.argtypes, library.readapt_linear_bf16.restype = _LINEAR, None
    library.readapt_stack_bf16.argtypes, library.readapt_stack_bf16.restype = [_P, _P], None
    return library
