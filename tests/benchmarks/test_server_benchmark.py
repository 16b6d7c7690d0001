"""The server benchmark: nothing is told behind a red gate; behind a green one a real server is measured."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import correctness
import pytest
import readapt_engine
import residency
import server as benchmark
import torch
from correctness import first_difference
from load import Target
from measured import Measured
from processes import Server
from random_adapters import write_many, write_mixed
from residency import Skipped, answers, hot_loads, in_turn, pool_bytes, touch
from safetensors.torch import load_file
from traffic import Arrival
from transformers import AutoTokenizer

from readapt_runtime.lora_format import read_adapter
from readapt_runtime.model.adapter_image import pack_adapter
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.registration import FolderSource, folder_digest
from readapt_runtime.server.startup import Options
from readapt_testing.serving import serving
from readapt_testing.tiny_engine import Tiny, build_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def _wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that applies every adapter one and a half times: what a kernel with a wrong scale would do."""

    def packed(modules: Mapping[str, Any], *rest: Any) -> Any:
        return pack_adapter({name: replace(m, scale=1.5 * m.scale) for name, m in modules.items()}, *rest)

    monkeypatch.setattr(readapt_engine, "pack_adapter", packed)


def test_the_gate_is_green_for_the_engine_as_it_is(tiny: Tiny) -> None:
    assert first_difference(tiny.base, list(tiny.adapters.values())) == ""


def test_the_gate_is_red_for_what_is_timed_and_wrong_in_bfloat16_alone(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[torch.dtype, torch.device]] = []

    def negated(base: Path, adapters: list[Path], dtype: torch.dtype, device: torch.device) -> Any:
        asked.append((dtype, device))
        engine, variants = readapt_engine.build(base, adapters, dtype)
        if dtype is torch.bfloat16:
            forward = engine._model.forward
            monkeypatch.setattr(engine._model, "forward", lambda batch: -forward(batch))
        return engine, variants

    monkeypatch.setattr(correctness, "build", negated)
    elsewhere = torch.device("cuda")
    assert "base in bfloat16: token 0 is" in first_difference(tiny.base, list(tiny.adapters.values()), elsewhere)
    assert asked == [(torch.float32, torch.device("cpu")), (torch.bfloat16, elsewhere)]


@pytest.mark.usefixtures("_wrong_scale")
def test_behind_a_red_gate_no_server_starts_and_no_number_is_told(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_measure", lambda *_: pytest.fail("measured behind a red gate"))

    assert benchmark.main(["--base", str(tiny.base), "--adapters", "4", "--scratch", str(tmp_path)]) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert "no speed is reported: mixed-" in err


@pytest.mark.fault
def test_a_measured_server_fills_the_table_and_the_records(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--adapters", "4", "--requests", "6", "--rate", "50", "--prompt-tokens", "5", "--output-tokens", "4"]
    out = tmp_path / "out"

    code = benchmark.main(
        ["--base", str(tiny.base), "--only", "load", "--runs", "1", "--pool", "64Mi", "--out", str(out), *sizes]
    )

    told, errors = capsys.readouterr()
    assert code == 0, errors
    assert "| Readapt | 6 / 6 |" in told
    assert "| TTFT p99, ms | " in told
    assert json.loads((out / "load.json").read_text())[0]["errors"] == {}
    assert (out / "load.svg").read_text().lstrip().startswith("<?xml")


def test_an_unknown_measurement_is_refused(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--base", str(tiny.base), "--only", "load,speed"]) == 2
    assert "speed" in capsys.readouterr().err


def test_adapters_that_share_files_differ_in_digest_and_are_read_in_full(tiny: Tiny, tmp_path: Path) -> None:
    many = write_many(tiny.base, tmp_path, 20)
    weights = {folder.joinpath("adapter_model.safetensors").stat().st_ino for folder in many.values()}

    assert len({folder_digest(f"sha256:{'0' * 64}", folder) for folder in many.values()}) == len(many) == 20
    assert len(weights) == 8
    scales = {next(iter(read_adapter(f, tiny.config.module_shapes).modules.values())).scale for f in many.values()}
    assert len(scales) == 13  # eight of 1, and twelve clones


def test_mixed_adapters_have_ranks_in_turn_and_weights_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    mixed = write_mixed(tiny.base, tmp_path, 8)
    read = [read_adapter(folder, tiny.config.module_shapes) for folder in mixed.values()]

    assert [adapter.rank for adapter in read] == [8, 16, 32, 64] * 2
    assert list(mixed)[:2] == ["r8-0", "r16-1"]
    first, fifth = (next(iter(read[k].modules.values())).a for k in (0, 4))
    assert not torch.equal(first, fifth)


def test_adapters_in_turn_are_each_the_one_used_longest_ago() -> None:
    trace = in_turn([Arrival(0.5 * i, 7, 3, 4) for i in range(40)], 16)

    assert [a.adapter for a in trace] == list(itertools.islice(itertools.cycle(range(16)), 40))
    assert [a.at for a in trace] == [0.5 * i for i in range(40)]


def test_a_server_without_hand_loading_is_skipped_with_its_answer(tiny: Tiny) -> None:
    limits = Limits(max_model_len=256, pool_bytes=16 << 20, linger_s=0.2)
    with serving(Options(tiny.base, "tiny", port=0, admin_port=0, adapters=tiny.adapters, limits=limits)) as running:
        target = Server("ours", running.serving, running.admin + "/no-such-api", 0, 0.0, 0.0)
        with pytest.raises(Skipped, match="/v1/load_lora_adapter: 404"):
            hot_loads(target, ["r8"])
        with pytest.raises(Skipped, match="unknown: HTTP 404"):
            touch(target, ["r8", "unknown"], (1, 200))


def test_answers_of_a_mixed_batch_are_those_of_each_model_alone(tiny: Tiny) -> None:
    limits = Limits(max_model_len=256, pool_bytes=16 << 20, linger_s=0.2)
    arrival = Arrival(0.0, None, 9, 6)
    with serving(Options(tiny.base, "tiny", port=0, admin_port=0, adapters=tiny.adapters, limits=limits)) as running:
        target = Target(running.serving, tuple(tiny.adapters), "tiny", (1, 200))
        found = answers(Server("ours", running.serving, running.admin, 0, 0.0, 0.0), target, arrival)

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.base)
    prompt = target.body(arrival, 42)["prompt"]
    for model, text in found.items():
        tokens = tiny.oracle.greedy(tiny.folder(None if model == "tiny" else model), prompt, 6)
        assert text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_peer_that_answers_for_the_base_in_its_adapters_name_shows() -> None:
    ours = {"a": "x", "b": "y", "base": "z"}

    told = benchmark.agreement({"Readapt": ours, "peer": {"a": "x", "b": "z", "base": "z"}})

    assert told == (
        "peer: 2 of 3 greedy answers of one mixed batch are Readapt's, 1 adapters answer as the base does.\n"
    )
    assert benchmark.agreement({"Readapt": ours}) == ""


def test_adapters_come_into_the_pool_from_the_host_and_from_disk(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    load = FolderSource.load
    monkeypatch.setattr(FolderSource, "load", lambda self, digest: reads.append(digest) or load(self, digest))
    arguments = ["--base", str(tiny.base), "--only", "swap-in", "--adapters", "4", "--out", str(tmp_path)]

    assert benchmark.main(arguments) == 0

    told, registered, each = capsys.readouterr().out, benchmark.SWAPPED, benchmark.SWAPPED * residency.ROUNDS
    counts = {title: len(seconds) for title, seconds in json.loads((tmp_path / "swap-in.json").read_text()).items()}
    assert counts == {"packed first": registered, "from its image on the host": each, "from disk": each}
    assert "| from its image on the host | " in told
    again = registered + each
    assert len(reads) == registered + (registered + again), "from the host nothing is read again, from disk everything"


def test_ratios_are_taken_run_by_run() -> None:
    ratio = Measured((2.0, 6.0, 9.0)).per(Measured((1.0, 2.0, 6.0)))

    assert ratio.values == (2.0, 3.0, 1.5)
    assert ratio.text(2) == "2.00 ± 0.75"


def test_the_pool_for_churn_has_room_for_the_adapters_that_should_fit(tiny: Tiny) -> None:
    factors = load_file(tiny.adapters["r8"] / "adapter_model.safetensors").values()

    assert pool_bytes(tiny.base, 8, adapters=8, tokens=0) == 8 * sum(2 * factor.numel() for factor in factors)
    # keys and values of 2 heads of 16 in 3 layers, two bytes each
    assert pool_bytes(tiny.base, 8, adapters=0, tokens=5) == 5 * 2 * 2 * 16 * 3 * 2
