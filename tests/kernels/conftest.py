from __future__ import annotations

import pytest
import torch
import triton

from readapt_kernels.cpu.library import usable_levels


@pytest.fixture(scope="session", autouse=True)
def _interpreted() -> None:
    if not triton.knobs.runtime.interpret:
        pytest.fail("triton was imported without TRITON_INTERPRET=1: these tests have no GPU to run on")


@pytest.fixture(params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """bf16 is not among them: the interpreter's bf16 products are garbage (docs/adr/0006-lora-kernels.md)."""
    assert isinstance(request.param, torch.dtype)
    return request.param


@pytest.fixture(scope="module", params=usable_levels())
def level(request: pytest.FixtureRequest) -> str:
    """Of the C++ kernels: every instruction set that this processor has."""
    return str(request.param)
