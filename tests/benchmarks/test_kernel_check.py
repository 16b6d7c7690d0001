"""The check before kernels are timed: ours passes it, what computes something else does not, and then no time is told.

The peers' kernels are not part of the repository; ``kernel_times.py --check`` takes their unpacked wheels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import kernel_times
import pytest
import torch
from attention_case import CHECKED, DecodeAttention
from lora_cases import Case, checked_batch, tiny
from lora_check import TOLERANCE, added_error, largest_error
from lora_engines import Ours

from readapt_kernels.attention.operands import HeadShape

CPU = torch.device("cpu")
CASE = Case(checked_batch(), replace(tiny(), num_layers=1), torch.float16, CPU)


class ForgetsALinear(Ours):
    def add(self, layer: int, linear: int) -> None:
        if linear != 2:
            super().add(layer, linear)


class TouchesTheBase(Ours):
    def add(self, layer: int, linear: int) -> None:
        super().add(layer, linear)
        self.outputs[layer][linear][-1] += 1


class ReadsPoison(Ours):
    def add(self, layer: int, linear: int) -> None:
        super().add(layer, linear)
        self.outputs[layer][linear] += self._kernels.bridge[0, 0, -1]  # a column that no kernel writes


def test_ours_is_right_to_rounding() -> None:
    assert largest_error(Ours(CASE), CASE) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("broken", [ForgetsALinear, TouchesTheBase, ReadsPoison])
def test_an_engine_that_computes_something_else_is_found(broken: type[Ours]) -> None:
    assert not largest_error(broken(CASE), CASE) <= TOLERANCE[torch.float16]


def test_a_red_check_ends_non_zero(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernel_times, "Ours", ForgetsALinear)
    monkeypatch.setattr(kernel_times, "tiny", lambda: CASE.shapes)

    assert kernel_times.main(["--check"]) == 1
    assert "| Readapt, decode attention | " in capsys.readouterr().out


def test_a_linear_that_is_left_out_is_an_error_of_one() -> None:
    assert largest_error(ForgetsALinear(CASE), CASE) == 1.0


def test_the_expected_values_are_those_of_dense_products() -> None:
    """Row 21 is the last of the adapter of rank 32, on q, k and v of the first layer."""
    x, y = CASE.inputs(0)[21].double(), CASE.outputs(0)[21].double()
    factors = list(CASE.factors(0, 0))[3]
    added = [b_t.double().t() @ (a.double() @ x) for a, b_t in zip(factors.a, factors.b_t, strict=True)]

    torch.testing.assert_close(CASE.expected(0, 0)[21], y + 0.5 * torch.cat(added), rtol=1e-12, atol=1e-12)
    assert added_error(CASE.outputs(0), CASE, 0, 0) == 1.0


def test_attention_over_permuted_pages_is_right_and_outputs_that_nobody_wrote_are_found() -> None:
    attention = DecodeAttention(CHECKED, HeadShape(6, 2, 64), 2, torch.float16, CPU)
    assert attention.largest_error() <= TOLERANCE[torch.float16]

    attention.run = lambda: None  # type: ignore[method-assign]
    assert not attention.largest_error() <= TOLERANCE[torch.float16]


def test_without_a_gpu_nothing_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert kernel_times.main([]) == 1
    assert capsys.readouterr() == ("", "no CUDA device: --check runs everything but the clock\n")


def test_a_folder_without_the_peers_kernels_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernel_times.main(["--check", "--vllm-wheel", str(tmp_path)]) == 1
    assert "unpack the wheel" in capsys.readouterr().err
