"""A rank that is lost, at any time and in any way, ends the others: no deadlock, no orphan, a message that says who."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from readapt_api.errors import EXIT_BUG
from readapt_cluster.waiting import until
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.model.backends import Bounds
from readapt_runtime.parallel.crew import Crew, Patience
from readapt_runtime.parallel.errors import WorkerDied, WorkerRefused
from readapt_runtime.parallel.rank import Plan
from readapt_testing.serving import serve_process
from readapt_testing.tiny_engine import Tiny, ask
from readapt_testing.tiny_ranks import PATIENCE, tiny_ranks

WAIT_S = 60.0
BODY = {"model": "r8", "prompt": "x", "max_tokens": 400, "temperature": 1, "seed": 1}


def _plan(base: Path) -> Plan:
    return Plan(base, torch.float32, "cpu", 1 << 20, Bounds(max_model_len=128))


def _ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The worker processes that a server has started (the other child is multiprocessing's resource tracker)."""
    found = []
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(int(pid))
    return found


def _gone(pids: list[int]) -> bool:
    """No process any more, or a zombie that nobody has waited for."""
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return False
        except (FileNotFoundError, ProcessLookupError):
            continue
    return True


@contextmanager
def _server(tiny: Tiny) -> Iterator[tuple[subprocess.Popen[str], dict[str, str], list[int]]]:
    arguments = ["--base", str(tiny.base), "--served-name", "tiny", "--adapter", f"r8={tiny.adapters['r8']}"]
    with serve_process([*arguments, "--pool-memory", "16Mi", "--tensor-parallel", "2"]) as (process, addresses):
        yield process, addresses, _ranks_of(process)


@pytest.mark.fault
def test_an_idle_server_ends_with_its_worker(tiny: Tiny) -> None:
    with _server(tiny) as (process, _, ranks):
        assert len(ranks) == 1
        os.kill(ranks[0], signal.SIGKILL)
        assert process.wait(WAIT_S) == EXIT_BUG


def test_a_busy_server_ends_with_its_worker_and_tells_the_client(tiny: Tiny) -> None:
    with _server(tiny) as (process, addresses, ranks), httpx.Client(base_url=addresses["serving"], timeout=60) as http:
        with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(ranks[0], signal.SIGKILL)
            rest = "".join(lines)
        assert '"error"' in rest
        assert "[DONE]" not in rest
        assert process.wait(WAIT_S) == EXIT_BUG


@pytest.mark.fault
def test_workers_end_with_a_server_that_is_killed(tiny: Tiny) -> None:
    with _server(tiny) as (process, _, ranks):
        process.kill()
        assert until(lambda: _gone(ranks), WAIT_S, every_s=0.05)


@pytest.mark.fault
def test_a_signal_to_the_whole_group_lets_the_server_finish_its_answers(tiny: Tiny) -> None:
    with _server(tiny) as (process, addresses, ranks), httpx.Client(base_url=addresses["serving"], timeout=60) as http:
        with http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            for pid in (*ranks, process.pid):
                os.kill(pid, signal.SIGTERM)
            assert "[DONE]" in "".join(lines)
        http.close()
        assert process.wait(WAIT_S) == 0
        assert until(lambda: _gone(ranks), WAIT_S, every_s=0.05)


def test_a_worker_that_hangs_ends_the_step_in_time(tiny: Tiny) -> None:
    """What the engine raises ends the server: ``test_engine_death``."""
    limits, patience = EngineLimits(max_batch_tokens=64, max_running=4), replace(PATIENCE, step_s=10.0, end_s=0.5)
    with tiny_ranks(tiny.base, 2, limits, patience=patience) as several:
        ask(several.engine, [1, 2, 3])
        several.engine.step()
        (process,) = (worker.process for worker in several.crew._workers)
        os.kill(process.pid or 0, signal.SIGSTOP)
        with pytest.raises(RuntimeError, match=r"(?i)timed out"):
            several.engine.step()
    assert not process.is_alive()


@pytest.mark.fault
def test_a_worker_that_takes_no_step_is_given_up(tiny: Tiny) -> None:
    limits, patience = EngineLimits(max_batch_tokens=64, max_running=4), replace(PATIENCE, step_s=2.0, end_s=0.5)
    with tiny_ranks(tiny.base, 2, limits, patience=patience) as several:
        (process,) = (worker.process for worker in several.crew._workers)
        os.kill(process.pid or 0, signal.SIGSTOP)
        with pytest.raises(WorkerDied, match=r"rank 1 .* takes no step"):
            several.crew.tell(bytes(64 << 20))
        with pytest.raises(WorkerDied, match=r"rank 1 .* adapter"):
            several.variant(tiny.adapters["r64"])


def test_what_a_worker_cannot_load_is_said_with_its_rank(tiny: Tiny, tmp_path: Path) -> None:
    with (
        Crew(_plan(tmp_path), tiny.config, 2, PATIENCE) as crew,
        pytest.raises(WorkerRefused, match=r"rank 1 of 2: BadWeights: .*neither model.safetensors nor"),
    ):
        crew.meet(num_pages=1)


@pytest.mark.fault
def test_a_worker_that_is_killed_at_start_is_an_error_and_no_wait(tiny: Tiny) -> None:
    with Crew(_plan(tiny.base), tiny.config, 2, PATIENCE) as crew:
        crew._workers[0].process.kill()
        with pytest.raises(WorkerDied, match=r"rank 1 .* ended with -9 while starting"):
            crew.meet(num_pages=1)


@pytest.mark.fault
def test_ranks_with_different_numbers_of_pages_do_not_serve(tiny: Tiny) -> None:
    with Crew(_plan(tiny.base), tiny.config, 2, PATIENCE) as crew:
        with pytest.raises(WorkerDied, match=r"rank 1 has \d+ pages, rank 0 has 7"):
            crew.meet(num_pages=7)
        process = crew._workers[0].process
    assert not process.is_alive()


@pytest.mark.fault
def test_a_worker_that_does_not_get_ready_is_given_up(tiny: Tiny) -> None:
    with (
        Crew(_plan(tiny.base), tiny.config, 2, Patience(start_s=0.0)) as crew,
        pytest.raises(WorkerDied, match=r"rank 1 .* did not start within 0 s"),
    ):
        crew.meet(num_pages=1)
