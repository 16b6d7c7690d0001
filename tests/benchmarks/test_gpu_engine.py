"""The engine's benchmark for GPUs, measured on a CPU as far as that goes; without a GPU it tells nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import gpu_engine
import pytest
import torch
from engine_steps import decode_seconds, engine_of
from gpu_engine import churning, decoding, graphs_per_bucket, swapping
from random_adapters import write_mixed
from residency import pool_bytes
from workloads import Workload

from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import PageOrder
from readapt_runtime.model.ops import TorchOps
from readapt_runtime.model.static_decoder import StaticDecoder, StepOptions
from readapt_runtime.server.limits import Limits
from readapt_testing.launch_tape import LaunchTape
from readapt_testing.tiny_engine import Tiny, build_tiny
from readapt_testing.triton_modes import recorded

SMALL = Workload("small", (), requests=4, prompt_tokens=20, output_tokens=6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def folders(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return list(write_mixed(tiny.base, tmp_path_factory.mktemp("adapters"), 6, (16,)).values())


def test_without_a_gpu_nothing_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert gpu_engine.main(["--base", "nowhere"]) == 1
    assert capsys.readouterr() == ("", "no CUDA device: decode.py and server.py measure the engine on a CPU\n")


def test_steps_count_in_which_every_row_decodes(tiny: Tiny, folders: list[Path]) -> None:
    limits = Limits(pool_bytes=pool_bytes(tiny.base, 16, 7, 400), max_rank=64)
    engine, variants = engine_of(tiny.base, folders, limits)
    engine.scheduler.max_running = 3
    assert not decode_seconds(engine, [], SMALL, 250).values, "there are never four"
    engine.scheduler.max_running = 4
    decode_seconds(engine, variants, SMALL, 250)  # brings the adapters in, one after the other
    assert len(decode_seconds(engine, variants, SMALL, 250).values) == SMALL.output_tokens - 1


def test_all_is_measured_on_a_cpu_too(tiny: Tiny, folders: list[Path]) -> None:
    rows = [*decoding(tiny.base, folders, SMALL), *swapping(tiny.base, folders[:1], 2)]
    assert [row[0] for row in rows] == ["H6"] * 3 + ["H11"] + ["H8"] * 4
    steady, churn = churning(tiny.base, folders, Workload("churn", (), 12, 20, 6))
    assert "; 0 loads" in steady[1]
    assert "; 0 loads" not in churn[1]


def test_graphs_are_counted(tiny: Tiny) -> None:
    ops, order = TorchOps(tiny.config.rms_norm_eps), PageOrder.PAGE_MAJOR
    limits, static = EngineLimits(max_batch_tokens=8), partial(StaticDecoder, options=StepOptions(record_at_start=True))
    with recorded():  # no kernel runs
        engine = tiny.engine(40, limits, order, lambda: 0.0, 32, static, None, ops, LaunchTape())
    assert graphs_per_bucket(engine) == "2"
