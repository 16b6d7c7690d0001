"""The process: settings, credentials, lease, workers, kopf's watches, probes; and how all of it ends.

Exit codes: 0 after SIGTERM or SIGINT, 1 when a part died (kopf ends on some watch errors: crash, restart, converge),
64 for settings that cannot work.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import kopf

from readapt_api.errors import EXIT_BAD_INPUT, EXIT_OK, ReadaptError, Terminal, Transient
from readapt_operator.handlers import kopf_settings, register
from readapt_operator.kube.client import KubeClient
from readapt_operator.kube.connect import connect, own_namespace
from readapt_operator.lease import LeaseGate
from readapt_operator.loop import Loop
from readapt_operator.observe import Observer
from readapt_operator.pods import PodClient
from readapt_operator.probes import serve_probes
from readapt_operator.queue import WorkQueue
from readapt_operator.settings import Settings, from_environment
from readapt_operator.signing import Signer, load_signer

log = logging.getLogger("readapt_operator")
WORKERS = 4
EXIT_PART_DIED = 1
_FIRST_LEASE_PAUSE_S = 0.5
_KOPF_END_S = 15.0


def main() -> None:
    """Console script ``readapt-operator``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "httpcore", "kopf.objects"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        settings = from_environment(own_namespace=own_namespace())
        log.info("settings: %s", settings)
        sys.exit(asyncio.run(run(settings)))
    except Terminal as error:
        log.error("%s", error)
        sys.exit(EXIT_BAD_INPUT)


async def run(settings: Settings) -> int:
    """Runs until a signal or until a part dies; returns the exit code."""
    stop = asyncio.Event()
    _stop_on_signals(stop)
    async with AsyncExitStack() as stack:
        reader = KubeClient(connect(), timeout_s=settings.request_timeout_s)
        stack.callback(reader.close)
        lease = LeaseGate(
            reader,
            namespace=settings.namespace,
            identity=settings.identity,
            duration_s=settings.lease_s,
            clock=time.monotonic,
        )
        stack.push_async_callback(_release, lease)
        renewing = asyncio.create_task(_renew(lease, settings.lease_s), name="lease")
        stack.push_async_callback(_cancel, [renewing])
        kube = reader.gated(lease.remaining_s)
        signer = await _until_stopped(_signer(kube, lease, settings), stop)
        if signer is None:
            return EXIT_OK
        loop = await _assemble(stack, settings, kube, lease, signer)
        return await _run_parts(loop, settings, renewing, stop)


async def _assemble(
    stack: AsyncExitStack, settings: Settings, kube: KubeClient, lease: LeaseGate, signer: Signer
) -> Loop:
    pods = PodClient(signer, port=settings.admin_port, timeout_s=settings.pod_timeout_s)
    stack.push_async_callback(pods.close)
    clock = time.monotonic
    observer = Observer(kube, pods, settings, signer.public_pem, lambda: datetime.now(UTC), clock)
    loop = Loop(kube, pods, observer, WorkQueue(clock), settings, clock, lambda: lease.held, last_beat=clock())
    if settings.probe_port:
        runner = await serve_probes(loop, settings.probe_port, clock)
        stack.push_async_callback(runner.cleanup)
    return loop


async def _run_parts(loop: Loop, settings: Settings, renewing: asyncio.Task[None], stop: asyncio.Event) -> int:
    """All parts run until the first of them ends, which none should, or until a signal."""
    kopf_stop, kopf_ready = asyncio.Event(), asyncio.Event()
    watching = asyncio.create_task(
        kopf.operator(
            registry=register(loop.add),
            settings=kopf_settings(settings),
            namespaces=settings.namespaces,
            clusterwide=not settings.namespaces,
            stop_flag=kopf_stop,
            ready_flag=kopf_ready,
        ),
        name="watches",
    )
    parts = [asyncio.create_task(loop.work(), name=f"worker-{i}") for i in range(WORKERS)]
    parts.append(asyncio.create_task(loop.resync(), name="resync"))
    stopping = asyncio.create_task(stop.wait(), name="signal")
    reclaiming = asyncio.create_task(_reclaim_signals(kopf_ready, stop))
    done, _ = await asyncio.wait([watching, renewing, stopping, *parts], return_when=asyncio.FIRST_COMPLETED)
    asked = stopping in done or stop.is_set()
    for task in done - {stopping}:
        log.error("%s ended: %r", task.get_name(), None if task.cancelled() else task.exception())
    kopf_stop.set()
    await _cancel([*parts, stopping, reclaiming])
    await asyncio.wait([watching], timeout=_KOPF_END_S)
    await _cancel([watching])
    return EXIT_OK if asked else EXIT_PART_DIED


def _stop_on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _reclaim_signals(kopf_ready: asyncio.Event, stop: asyncio.Event) -> None:
    """kopf takes the handlers when it starts; then it would end alone, as if it had died."""
    await kopf_ready.wait()
    _stop_on_signals(stop)


async def _signer(kube: KubeClient, lease: LeaseGate, settings: Settings) -> Signer:
    """The first write, so the lease comes first."""
    while True:
        try:
            if lease.held:
                return await load_signer(kube, settings.namespace)
        except Transient as error:
            log.warning("the signing key is not there yet: %s", error)
        await asyncio.sleep(_FIRST_LEASE_PAUSE_S)


async def _renew(lease: LeaseGate, duration_s: float) -> None:
    """Three times per duration; whatever the API server answers, the gate closes by itself in time."""
    was_held, was_lost = False, False
    while True:
        try:
            await lease.step()
            was_lost = False
        except ReadaptError as error:
            log.log(logging.DEBUG if was_lost else logging.WARNING, "lease: %s", error)
            was_lost = True
        if lease.held != was_held:
            was_held = lease.held
            log.info("lease: %s", "held" if was_held else "not held, waiting")
        await asyncio.sleep(duration_s / 3 if lease.held else min(1.0, duration_s / 3))


async def _until_stopped(work: Coroutine[None, None, Signer], stop: asyncio.Event) -> Signer | None:
    """The result, or None when a signal came first."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    result = task.result() if task.done() else None
    await _cancel([task, stopping])
    return result


async def _release(lease: LeaseGate) -> None:
    try:
        await lease.release()
    except ReadaptError as error:
        log.warning("lease: not released: %s", error)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
