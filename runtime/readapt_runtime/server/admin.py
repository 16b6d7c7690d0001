"""The administration port: state, desired set, drain, loading by hand. Never part of the Service."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from readapt_api.contract import Digest
from readapt_api.serving import DesiredSet, PodState
from readapt_runtime.server.adapters import AdapterTable
from readapt_runtime.server.admin_tokens import BadToken, TokenCheck
from readapt_runtime.server.answering import Desk
from readapt_runtime.server.body import parse_body, read_body
from readapt_runtime.server.desired_set import DesiredSetKeeper, WrongPod
from readapt_runtime.server.hand_loading import HandLoading
from readapt_runtime.server.problems import Conflict, Unauthorized
from readapt_runtime.server.readiness import Readiness

log = logging.getLogger(__name__)

MAX_SET_BYTES = 16 << 20
_Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Admin:
    """One instance per process; without ``tokens`` the port is bound to loopback and open to it."""

    revision: str
    base: Digest
    keeper: DesiredSetKeeper
    adapters: AdapterTable
    desk: Desk
    readiness: Readiness
    connections: Callable[[], int]
    by_hand: HandLoading
    tokens: TokenCheck | None

    def routes(self) -> list[Route]:
        return [
            Route("/v1/state", self._guarded(self.state)),
            Route("/v1/desired", self._guarded(self.desired), methods=["POST"]),
            Route("/v1/drain", self._guarded(self.drain), methods=["POST"]),
            Route("/v1/load_lora_adapter", self._guarded(self.by_hand.load_endpoint), methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._guarded(self.by_hand.unload_endpoint), methods=["POST"]),
        ]

    def _guarded(self, endpoint: _Endpoint) -> _Endpoint:
        async def checked(request: Request) -> Response:
            if self.tokens is not None:
                try:
                    self.tokens.check(request.headers.get("authorization", ""))
                except BadToken as error:
                    raise Unauthorized(str(error)) from error
            return await endpoint(request)

        return checked

    async def state(self, request: Request) -> Response:
        return JSONResponse(self.describe().to_wire())

    async def desired(self, request: Request) -> Response:
        """Takes a set with a higher sequence number; answers with the state either way, 409 for another pod's set."""
        desired = parse_body(DesiredSet, await read_body(request, MAX_SET_BYTES))
        try:
            self.keeper.offer(desired)
        except WrongPod as error:
            raise Conflict(str(error)) from error
        return JSONResponse(self.describe().to_wire())

    async def drain(self, request: Request) -> Response:
        """From now on every answer closes its connection; everything else goes on as before."""
        self.readiness.draining = True
        log.info("draining")
        return JSONResponse(self.describe().to_wire())

    def describe(self) -> PodState:
        current = self.keeper.current
        return PodState(
            revision=self.revision,
            base=self.base,
            sequence=current.sequence if current else 0,
            set_digest=current.digest if current else None,
            ready=self.readiness.ready,
            draining=self.readiness.draining,
            in_flight=self.desk.in_flight,
            connections=self.connections(),
            adapters=tuple(generation.describe() for generation in self.adapters.generations),
        )
