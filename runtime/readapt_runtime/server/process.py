"""The life of the serving process: listen, serve, end well on SIGTERM, end loudly when the engine dies."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import Gauge

from readapt_api.errors import EXIT_BUG, EXIT_OK
from readapt_api.serving import DesiredSet
from readapt_runtime.engine.thread import EngineThread
from readapt_runtime.parallel.crew import Crew
from readapt_runtime.server.adapters import AdapterTable
from readapt_runtime.server.admin import Admin
from readapt_runtime.server.admin_tokens import TokenCheck
from readapt_runtime.server.answering import Desk
from readapt_runtime.server.api_keys import ApiKeys
from readapt_runtime.server.app import admin_app, serving_app
from readapt_runtime.server.desired_set import DesiredSetKeeper, ShardFolder
from readapt_runtime.server.encoding import Encoder
from readapt_runtime.server.engine_client import EngineClient
from readapt_runtime.server.engine_metrics import EngineMetrics
from readapt_runtime.server.hand_loading import HandLoading
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.listener import Listener, listen
from readapt_runtime.server.metrics import ServingMetrics
from readapt_runtime.server.openai import OpenAI
from readapt_runtime.server.readiness import Readiness
from readapt_runtime.server.startup import BadOptions, Machinery, Options
from readapt_runtime.server.verification import Verifier

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_TICK_S = 0.05
_WATCH_S = 1.0
ENGINE_STOP_S = 10.0


class EngineHung(RuntimeError):
    """A step of the engine does not end; only a new process helps."""


async def run(options: Options, machinery: Machinery, announce: Callable[[str], None]) -> int:
    """Serves until SIGTERM or SIGINT, or until the engine dies; the exit code of the process.

    ``announce`` gets one JSON object with the addresses once both ports listen.
    """
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    return await serve_until(ending, options, machinery, announce)


async def serve_until(
    ending: asyncio.Event, options: Options, machinery: Machinery, announce: Callable[[str], None]
) -> int:
    """As ``run``, with the end as an event."""
    server = _assemble(options, machinery)
    tasks = server.start()
    announce(json.dumps(server.addresses()))
    try:
        await _first(ending, server.died, *tasks)
        if ending.is_set():
            log.info("terminating")
            await server.finish()
    finally:
        code = await server.stop(tasks)
    log.info("stopped", extra={"exit_code": code})
    return code


async def _first(ending: asyncio.Event, died: asyncio.Event, *tasks: asyncio.Task[None]) -> None:
    """Returns when one of the events is set, or when a task that should run for ever ends."""
    waits = [asyncio.create_task(event.wait()) for event in (ending, died)]
    try:
        await asyncio.wait([*waits, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


@dataclass(frozen=True, slots=True)
class _Server:
    serving: Listener
    administration: Listener
    engine: EngineThread
    adapters: AdapterTable
    shards: ShardFolder | None
    readiness: Readiness
    desk: Desk
    died: asyncio.Event
    limits: Limits
    host: str
    admin_host: str
    crew: Crew | None

    def start(self) -> list[asyncio.Task[None]]:
        self.engine.start()
        if self.crew is not None:
            self.crew.watch(self.engine.die)
        work = [self.adapters.run(), self.serving.run_until_exit(), self.administration.run_until_exit()]
        if self.shards is not None:
            work.append(self.shards.watch())
        work.append(_watch(self.engine, self.limits.step_s))
        return [asyncio.create_task(w) for w in work]

    def addresses(self) -> dict[str, str]:
        return {
            "serving": f"http://{_bracketed(self.host)}:{self.serving.port}",
            "admin": f"http://{_bracketed(self.admin_host)}:{self.administration.port}",
        }

    async def finish(self) -> None:
        """Not ready any more; answers what is here and what still comes, each with Connection: close."""
        self.readiness.terminating = True
        give_up = time.monotonic() + self.limits.shutdown_s
        quiet_since = time.monotonic()
        while time.monotonic() < give_up and self.engine.alive:
            if self.desk.in_flight:
                quiet_since = time.monotonic()
            elif not self.serving.connections or time.monotonic() - quiet_since >= self.limits.linger_s:
                return
            await asyncio.sleep(_TICK_S)

    async def stop(self, tasks: list[asyncio.Task[None]]) -> int:
        """Closes everything; non-zero when the engine died or a task that should run for ever did not."""
        broken = [task for task in tasks if task.done()]
        for task in broken:
            log.critical("a task of the server ended", exc_info=task.exception())
        self.serving.should_exit = self.administration.should_exit = True
        listeners = tasks[1:3]
        await asyncio.wait(listeners)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self.engine.stop, ENGINE_STOP_S)
        if self.crew is not None:
            await asyncio.to_thread(self.crew.close)
        return EXIT_BUG if broken or self.engine.error is not None else EXIT_OK


async def _watch(engine: EngineThread, step_s: float) -> None:
    """Raises EngineHung once a step takes longer than ``step_s``, and health has had the time to show it."""
    tick = min(_WATCH_S, step_s)
    while engine.step_s <= step_s + tick:
        await asyncio.sleep(tick)
    raise EngineHung(f"a step of the engine has taken more than {step_s} s")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _assemble(options: Options, machinery: Machinery) -> _Server:
    limits = machinery.limits
    loop, died = asyncio.get_running_loop(), asyncio.Event()

    def report_death() -> None:
        loop.call_soon_threadsafe(died.set)

    engine = EngineThread(machinery.engine, report_death)
    client = EngineClient(engine)
    readiness = Readiness()
    verifier = Verifier(client, machinery.config.vocab_size, machinery.dtype)
    adapters = AdapterTable(machinery.source, verifier, client.forget, client.preload, options.served_name)
    metrics = _metrics(options, machinery, engine, adapters)
    desk = Desk(options.served_name, machinery.tokens, client, adapters, limits, metrics)

    def take(desired: DesiredSet) -> None:
        adapters.apply(desired.adapters)
        readiness.await_first(adapters.generations)

    keeper = DesiredSetKeeper(options.revision, machinery.base_digest, take)
    shards = ShardFolder(options.set_dir, keeper) if options.set_dir else None
    if shards is not None:
        shards.poll()
    elif machinery.given is not None:
        keeper.offer(machinery.given)
    tokens = machinery.tokens
    encoder = Encoder(tokens, limits)
    openai = OpenAI(options.served_name, tokens, encoder, desk, adapters, limits, options.tenant_header)
    keys = ApiKeys(options.api_key_file) if options.api_key_file else None
    app = serving_app(openai, engine, readiness, options.revision, keys)
    serving = Listener(app, _listen(options.host, options.port), limits)
    check = TokenCheck(options.admin_public_key, options.admin_subject) if options.admin_public_key else None
    admin_host = options.host if check else LOOPBACK
    admin = Admin(
        revision=options.revision,
        base=machinery.base_digest,
        keeper=keeper,
        adapters=adapters,
        desk=desk,
        readiness=readiness,
        connections=lambda: serving.connections,
        by_hand=HandLoading(adapters, machinery.source, machinery.root),
        tokens=check,
    )
    administration = Listener(admin_app(admin), _listen(admin_host, options.admin_port), limits)
    return _Server(
        serving,
        administration,
        engine,
        adapters,
        shards,
        readiness,
        desk,
        died,
        limits,
        options.host,
        admin_host,
        machinery.crew,
    )


def _metrics(options: Options, machinery: Machinery, engine: EngineThread, adapters: AdapterTable) -> ServingMetrics:
    metrics = ServingMetrics()
    build = {
        "version": version("readapt"),
        "revision": options.revision,
        "base": machinery.base_digest,
        "dtype": machinery.dtype,
    }
    observed = EngineMetrics(options.served_name, build, lambda: engine.stats, lambda: adapters.generations)
    metrics.registry.register(observed)
    stuck = Gauge("readapt_stuck_reads", "Reads of adapters that hang.", registry=metrics.registry)
    stuck.set_function(lambda: machinery.reads.stuck)
    return metrics


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        raise BadOptions(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
