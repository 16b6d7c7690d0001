"""/healthz: the workers' heartbeat. /readyz: age of the last full resync. Neither is ever a constant."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from readapt_operator.loop import PASS_LIMIT_S, Loop

_BEAT_LIMIT_S = PASS_LIMIT_S + 60.0


def healthy(loop: Loop, now: float) -> bool:
    """A worker came by lately; a pass may take PASS_LIMIT_S."""
    return now - loop.last_beat < _BEAT_LIMIT_S


def ready(loop: Loop, now: float) -> bool:
    """Everything was listed lately, which takes the lease, credentials and an API server that answers."""
    return loop.last_resync is not None and now - loop.last_resync < 3 * loop.settings.resync_s


async def serve_probes(loop: Loop, port: int, clock: Callable[[], float]) -> web.AppRunner:
    """Starts the server; the caller cleans the runner up."""

    async def healthz(_: web.Request) -> web.Response:
        counts = f"{loop.passes} passes, {loop.failures} failed, {loop.bugs} bugs, {len(loop.queue)} due"
        return _answer(healthy(loop, clock()), counts)

    async def readyz(_: web.Request) -> web.Response:
        return _answer(ready(loop, clock()), "resync" if loop.last_resync is not None else "no resync yet")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


def _answer(good: bool, text: str) -> web.Response:
    return web.Response(status=200 if good else 503, text=f"{'ok' if good else 'not ok'}: {text}\n")
