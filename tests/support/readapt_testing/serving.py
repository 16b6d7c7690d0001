"""A real server on loopback for tests: in a thread of this process, or as a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from readapt_api.artifacts import PROBE, ArtifactKind, Manifest, Probe
from readapt_api.contract import Digest
from readapt_api.digest import canonical_json
from readapt_api.errors import ReadaptError
from readapt_api.serving import MAX_SHARDS, SHARD_FILE, DesiredSet, split_set
from readapt_runtime.server.process import serve_until
from readapt_runtime.server.startup import Machinery, Options, build
from readapt_runtime.store import Store

COMMAND = "import typer; from readapt_runtime.server.command import serve; typer.run(serve)"
"""``readapt serve`` and nothing else."""


@dataclass
class Running:
    """Addresses of a server that listens."""

    serving: str
    admin: str
    machinery: Machinery
    end: Callable[[], None] = field(default=lambda: None)
    exit_code: int | None = None


@contextmanager
def serving(options: Options) -> Iterator[Running]:
    """Serves in a thread until the block ends; the engine's conservation law is checked at the end.

    What is raised before the server listens is raised here.
    """
    machinery = build(options)
    ready = threading.Event()
    state: dict[str, object] = {}

    async def life() -> int:
        ending, loop = asyncio.Event(), asyncio.get_running_loop()
        state["end"] = lambda: None if loop.is_closed() else loop.call_soon_threadsafe(ending.set)

        def announce(text: str) -> None:
            state.update(json.loads(text))
            ready.set()

        return await serve_until(ending, options, machinery, announce)

    def main() -> None:
        try:
            state["code"] = asyncio.run(life())
        except ReadaptError as error:
            state["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=main, name="server")
    thread.start()
    ready.wait(60)
    if isinstance(error := state.get("error"), ReadaptError):
        thread.join()
        raise error
    running = Running(str(state["serving"]), str(state["admin"]), machinery)
    running.end = state["end"]  # type: ignore[assignment]
    try:
        yield running
    finally:
        running.end()
        thread.join(60)
        running.exit_code = state.get("code")  # type: ignore[assignment]
    machinery.engine.pool.check()


@contextmanager
def serve_process(
    arguments: Sequence[str], prelude: str = ""
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """``readapt serve`` as a process on free ports, and its addresses once it listens.

    ``prelude`` is Python that runs in it first.
    """
    command = [sys.executable, "-c", f"{prelude}\n{COMMAND}", "--port", "0", "--admin-port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    reader = threading.Thread(target=_collect, args=(process.stderr, lines))
    reader.start()
    try:
        first = process.stdout.readline()
        if not first:
            raise AssertionError("the server did not start:\n" + "".join(lines))
        yield process, json.loads(first)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


def _collect(stream: IO[str], lines: list[str]) -> None:
    lines.extend(stream)


def publish_variant(store: Store, folder: Path, base: Digest, probe: Probe | None, scratch: Path) -> Manifest:
    """Puts a PEFT folder into the store as a variant of ``base``, with its probe as an attachment."""
    scratch.mkdir(parents=True)
    for file in folder.iterdir():
        (scratch / file.name).write_bytes(file.read_bytes())
    if probe is not None:
        (scratch / PROBE).write_bytes(canonical_json(probe.to_wire()))
    attachments = [PROBE] if probe is not None else []
    return store.publish(ArtifactKind.VARIANT, scratch, base=base, attachments=attachments)


def write_shards(folder: Path, desired: DesiredSet) -> None:
    """The set as a kubelet lays out ConfigMap volumes: ``<i>/set.json``, replaced by renaming."""
    for shard in split_set(desired):
        target = folder / str(shard.shard)
        target.mkdir(parents=True, exist_ok=True)
        fresh = target / f".{SHARD_FILE}.new"
        fresh.write_bytes(canonical_json(shard.to_wire()))
        fresh.rename(target / SHARD_FILE)
    for index in range(len(split_set(desired)), MAX_SHARDS):
        (folder / str(index) / SHARD_FILE).unlink(missing_ok=True)
