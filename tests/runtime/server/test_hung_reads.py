"""A volume that does not answer: its adapters fail in time, and all others are served."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from readapt_cluster.waiting import until
from readapt_runtime.lora_format import AdapterReader
from readapt_runtime.server import timed_reads
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options
from readapt_runtime.server.timed_reads import ReadHangs, TimedReads
from readapt_testing.serving import serving
from readapt_testing.tiny_engine import Tiny

LIMITS = Limits(max_model_len=256, pool_bytes=16 << 20, linger_s=0.2, read_s=0.5)


class Volume:
    """Reads of folders whose names begin with ``dead`` hang until the volume is back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.back = threading.Event()
        self.dead = True
        read = AdapterReader.read

        def hang(reader: AdapterReader, folder: Path, *rest: Any) -> Any:
            if self.dead and folder.name.startswith("dead"):
                self.back.wait(60)
            return read(reader, folder, *rest)

        monkeypatch.setattr(AdapterReader, "read", hang)


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Iterator[Volume]:
    made = Volume(monkeypatch)
    yield made
    made.back.set()


@pytest.fixture
def root(tiny: Tiny, tmp_path: Path) -> Path:
    for name, source in {"dead": "r4", "dead-too": "r3", "well": "r8"}.items():
        shutil.copytree(tiny.adapters[source], tmp_path / name)
    return tmp_path


def _load(admin: str, name: str) -> httpx.Response:
    return httpx.post(f"{admin}/v1/load_lora_adapter", json={"lora_name": name, "lora_path": name}, timeout=60)


def _ask(address: str, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "x", "max_tokens": 2, "temperature": 0}
    return httpx.post(f"{address}/v1/completions", json=body, timeout=60)


def _stuck(address: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("readapt_stuck_reads ")).split()[1])


def test_a_load_by_hand_that_hangs_is_refused_and_the_next_one_is_done(tiny: Tiny, root: Path, volume: Volume) -> None:
    options = Options(tiny.base, "tiny", port=0, admin_port=0, adapter_root=root, limits=LIMITS)
    with serving(options) as server:
        refused = _load(server.admin, "dead")
        assert (refused.status_code, "has taken more than 0.5 s" in refused.text) == (503, True)
        again = _load(server.admin, "dead")
        assert (again.status_code, "an earlier read has hung" in again.text) == (503, True)
        assert _stuck(server.serving) == 1
        assert _load(server.admin, "well").status_code == 200
        assert _ask(server.serving, "well").status_code == 200
        volume.dead = False
        volume.back.set()
        assert until(lambda: _stuck(server.serving) == 0, 30, every_s=0.02)
        assert _load(server.admin, "dead").status_code == 200
        assert _ask(server.serving, "dead").status_code == 200


def test_adapters_that_hang_at_registration_fail_and_the_others_are_served(
    tiny: Tiny, root: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("readapt_runtime.server.adapters.RETRY_DELAYS_S", (0.05,))
    volume.dead = False  # their digests are taken at the start
    adapters = {name: root / name for name in ("dead", "dead-too", "well")}
    machinery_options = Options(tiny.base, "tiny", port=0, admin_port=0, adapters=adapters, limits=LIMITS)
    volume.dead = True
    with serving(machinery_options) as server:
        assert _ask(server.serving, "well").status_code == 200
        for name in ("dead", "dead-too"):
            answer = _ask(server.serving, name)
            assert answer.status_code == 503
            assert "ReadHangs" in answer.json()["error"]["message"]


def test_reads_that_hang_on_the_way_into_the_pool_leave_their_slots_to_others(
    tiny: Tiny, root: Path, volume: Volume
) -> None:
    """As many as may be loaded at once; nothing is kept on the host, so that each is read again."""
    volume.dead = False
    adapters = {name: root / name for name in ("dead", "dead-too", "well")}
    limits = replace(LIMITS, host_bytes=1)
    with serving(Options(tiny.base, "tiny", port=0, admin_port=0, adapters=adapters, limits=limits)) as server:
        states = server.machinery.engine.memory.residency

        def verified() -> bool:
            listed = httpx.get(f"{server.admin}/v1/state").json()["adapters"]
            return all(adapter["state"] == "Verified" for adapter in listed)

        assert until(verified, 30, every_s=0.02)
        assert states.resident == 0
        volume.dead = True
        answers: dict[str, httpx.Response] = {}
        asking = [
            threading.Thread(target=lambda name=name: answers.update({name: _ask(server.serving, name)}))
            for name in ("dead", "dead-too")
        ]
        for thread in asking:
            thread.start()
        assert until(lambda: states.loading == 2, 30, every_s=0.005)
        assert _ask(server.serving, "well").status_code == 200
        for thread in asking:
            thread.join(60)
        assert {answer.status_code for answer in answers.values()} == {503}
        assert all("has taken more than" in answer.json()["error"]["message"] for answer in answers.values())
        assert _stuck(server.serving) == 2
        volume.dead = False
        volume.back.set()
        assert until(lambda: _stuck(server.serving) == 0, 30, every_s=0.02)
        assert _ask(server.serving, "dead").status_code == 200


def test_as_many_threads_hang_as_may_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_reads, "MAX_STUCK", 3)
    back, begun = threading.Event(), []
    reads = TimedReads(0.05)

    def hang() -> None:
        begun.append(1)
        back.wait(60)

    for number in range(6):
        with pytest.raises(ReadHangs, match="has taken" if number < 3 else "3 other reads hang"):
            reads.read(str(number), hang)
    assert (reads.stuck, len(begun)) == (3, 3)
    back.set()
    assert until(lambda: reads.stuck == 0, 30, every_s=0.01)
    assert reads.read("0", lambda: 7) == 7


def test_an_error_of_a_read_passes_even_where_it_is_a_timeout() -> None:
    def read() -> None:
        raise TimeoutError(110, "connection timed out")

    with pytest.raises(TimeoutError, match="connection"):
        TimedReads(30).read("x", read)
