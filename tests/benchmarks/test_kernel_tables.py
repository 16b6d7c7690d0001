"""How times become tables, on the CPU with a clock of our own: what needs a GPU is the clock and the graph alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import kernel_tables
import pytest
import torch
from attention_case import Contexts
from graph_timing import host_seconds
from lora_cases import Batch, Case, checked_batch, tiny
from lora_engines import Ours, Tuned
from measured import Measured

from readapt_kernels.attention.operands import HeadShape

ADDED_S = {"Readapt": 1e-3, "slower": 2e-3, "slower, swept": 1.5e-3}


@dataclass
class Replayed:
    """A graph that launches anew."""

    replay: Callable[[], None]


class Slower(Ours):
    name = "slower"


class Forgetful(Ours):
    name = "forgetful"

    def add(self, layer: int, linear: int) -> None:
        return


def _small(batch: Batch) -> Case:
    return Case(batch, replace(tiny(), num_layers=1), torch.float16, torch.device("cpu"))


def _seconds(graphs: Mapping[str, Replayed], rounds: int) -> dict[str, Measured]:
    for graph in graphs.values():
        graph.replay()
    return {name: Measured((ADDED_S.get(name, 1e-3),) * rounds) for name in graphs}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins = {"capture": Replayed, "graph_seconds": _seconds, "_case": _small}
    stand_ins |= {"host_seconds": lambda work, rounds: work() or Measured((1e-4,) * rounds)}
    stand_ins |= {"copy_bandwidth": lambda rounds: Measured((1e9,))}
    stand_ins |= {"decode_batches": lambda: (checked_batch(),), "OVERHEADS": (Batch("H6", (8, 8), (2, 2)),)}
    stand_ins |= {"TIMED": (Contexts("two", (20, 40)),), "LLAMA_8B": HeadShape(4, 2, 32)}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(kernel_tables, name, stand_in)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_each_engine_has_a_line_and_ratios_are_theirs_over_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    makers = {"Readapt": lambda case, tuned: Ours(case), "slower": lambda case, tuned: Slower(case)}

    assert kernel_tables.compare(makers, sweep=False, rounds=3, out=tmp_path) == 0
    assert (tmp_path / "kernels.svg").stat().st_size > 1000

    told = capsys.readouterr().out
    ours, slower = (line for line in told.splitlines() if line.startswith("| check |"))
    assert slower.startswith("| check | slower | 2000 ± 0 | 2.00 ± 0.00 |")
    # ranks 8, 16 and 32 have rows; 64·3+128, 64+64, 64·2+192 and 96+64 elements per rank; fp16; in 1 ms of 1e9 B/s
    share = (8 + 16 + 32) * (320 + 128 + 320 + 160) * 2 / 1e-3 / 1e9
    assert f"| {share:.2f} |" in ours
    assert "| H6 | 1.000 ± 0.000 |" in told
    assert "| two | 1000 ± 0 |" in told


def test_a_sweep_keeps_the_fastest_configuration_per_linear(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"shrink": {"block_k": (64, 128)}, "expand": {"block_n": (32, 64)}}
    monkeypatch.setattr(kernel_tables, "_VLLM_GRID", grid)
    found: list[Tuned] = []

    def timed(graphs: Mapping[str, Replayed], rounds: int) -> dict[str, Measured]:
        last = list(found[-1].values())[-1] if found and found[-1] else {}
        fast = last in ({"block_k": 128}, {"block_n": 32})
        return {name: Measured((1e-3 if fast else 2e-3,) * rounds) for name in graphs}

    def make(case: Case, tuned: Tuned) -> Slower:
        found.append(tuned)
        return Slower(case)

    monkeypatch.setattr(kernel_tables, "graph_seconds", timed)

    assert kernel_tables.compare({"Readapt": lambda case, tuned: Ours(case), "vLLM": make}, sweep=True, rounds=2) == 0

    assert found == [
        {("shrink", i): {"block_k": 128} for i in range(4)} | {("expand", i): {"block_n": 32} for i in range(4)}
    ]
    assert "| check | vLLM, swept |" in capsys.readouterr().out


def test_a_wrong_engine_ends_everything_and_no_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    makers = {"Readapt": lambda case, tuned: Ours(case), "forgetful": lambda case, tuned: Forgetful(case)}

    assert kernel_tables.compare(makers, sweep=False, rounds=2) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err == "no speed is reported: check: forgetful: error 1.0e+00, allowed 1e-03\n"


def test_host_time_leaves_warm_ups_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    calls: list[int] = []

    assert len(host_seconds(lambda: calls.append(1), rounds=5).values) == 5
    assert len(calls) == 8
