"""Administration of serving pods: signed calls to pod addresses, in parallel, with time-outs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

import httpx
from pydantic import ValidationError

from readapt_api.serving import DesiredSet, PodState
from readapt_operator.queue import Key
from readapt_operator.signing import Signer

log = logging.getLogger(__name__)
_AT_ONCE = 32


class PodAdmin(Protocol):
    """A pod that does not answer is no error: it is asked again in the next pass."""

    async def states(self, base: Key, ips: Iterable[str]) -> dict[str, PodState]:
        """ip -> state of the pods that answered."""

    async def push(self, base: Key, ips: Iterable[str], desired: DesiredSet) -> None:
        """POST /v1/desired."""

    async def drain(self, base: Key, ips: Iterable[str]) -> None:
        """POST /v1/drain."""


class PodClient:
    """Implements ``PodAdmin`` over HTTP."""

    def __init__(self, signer: Signer, *, port: int, timeout_s: float) -> None:
        self._signer = signer
        self._port = port
        self._limit = asyncio.Semaphore(_AT_ONCE)
        # Pods are addressed directly: a proxy of the environment is not for them.
        self._http = httpx.AsyncClient(timeout=timeout_s, trust_env=False, follow_redirects=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def states(self, base: Key, ips: Iterable[str]) -> dict[str, PodState]:
        asked = list(dict.fromkeys(ips))
        answers = await asyncio.gather(*(self._ask("GET", base, ip, "/v1/state") for ip in asked))
        states = {ip: _state(ip, body) for ip, body in zip(asked, answers, strict=True) if body is not None}
        return {ip: state for ip, state in states.items() if state is not None}

    async def push(self, base: Key, ips: Iterable[str], desired: DesiredSet) -> None:
        body = desired.to_wire()
        await asyncio.gather(*(self._ask("POST", base, ip, "/v1/desired", body) for ip in ips))

    async def drain(self, base: Key, ips: Iterable[str]) -> None:
        await asyncio.gather(*(self._ask("POST", base, ip, "/v1/drain") for ip in ips))

    async def _ask(
        self, method: str, base: Key, ip: str, path: str, body: dict[str, object] | None = None
    ) -> bytes | None:
        host = f"[{ip}]" if ":" in ip else ip
        headers = {"Authorization": f"Bearer {self._signer.token(base)}"}
        try:
            async with self._limit:
                answer = await self._http.request(
                    method, f"http://{host}:{self._port}{path}", json=body, headers=headers
                )
        except httpx.HTTPError as error:
            log.debug("%s %s of pod %s: %r", method, path, ip, error)
            return None
        if not answer.is_success:
            log.warning("%s %s of pod %s: status %d", method, path, ip, answer.status_code)
            return None
        return answer.content


def _state(ip: str, body: bytes) -> PodState | None:
    try:
        return PodState.model_validate_json(body)
    except ValidationError as error:
        log.warning("pod %s: its state cannot be read: %d faults", ip, error.error_count())
        return None
