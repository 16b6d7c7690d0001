"""The host's time for a step's LoRA: what is timed is what the engine does, and the peer's twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import host_times
import pytest
import torch
from lora_cases import Batch

SMALL = replace(host_times.LLAMA_8B, num_layers=2, rotary_layers=(True,) * 2)


class Meta:
    """vLLM's, which keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[list[int]] = []

    def make(self, *sizes: object) -> Meta:
        return self

    def prepare_tensors(self, mapping: torch.Tensor) -> None:
        self.told.append(mapping.tolist())


def test_every_step_of_other_adapters_is_written_and_the_same_again_is_not() -> None:
    steps = iter(host_times.contenders(Batch("two", (8, 16), (1, 1)), SMALL, None).values())
    other, again = next(steps), next(steps)
    other()

    written: Any = [other() for _ in range(3)]
    first: Any = again()

    assert all(news == step.used for step, news in written)
    assert first[1] == first[0].used
    assert [again()[1] for _ in range(2)] == [0, 0]  # type: ignore[index]


def test_words_are_made_anew_for_each_stay() -> None:
    once = list(host_times.contenders(Batch("one", (8,), (1,)), SMALL, None).values())[2]

    assert once() is not once()


def test_the_peer_prepares_for_tokens_and_for_sampler_rows() -> None:
    meta = Meta()
    peer: Any = SimpleNamespace(metadata=SimpleNamespace(LoRAKernelMeta=meta))
    steps = host_times.contenders(Batch("two", (8, 8), (1, 2)), SMALL, peer)

    list(steps.values())[-1]()

    assert meta.told == [[0, 1, 1]] * 2


def test_the_table_has_a_line_per_contender(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_times, "decode_batches", lambda: (Batch("two", (8, 8), (1, 1)),))

    assert host_times.main(["--rounds", "2"]) == 0

    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| two"] * 3
    assert lines[0].endswith("| 1.00 ± 0.00 |")


def test_a_folder_without_the_peer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert host_times.main(["--vllm-wheel", str(tmp_path)]) == 1
    assert "unpack the wheel" in capsys.readouterr().err
