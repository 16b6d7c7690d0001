"""One variant under one name, from the wish for it to its last user."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from readapt_api.artifacts import Probe
from readapt_api.contract import Digest
from readapt_api.serving import AdapterState, PodAdapter
from readapt_runtime.engine.core import Variant

NOT_ASKED = 1 << 62
"""After every number that a request has."""


@dataclass(eq=False, slots=True)
class Generation:
    """See the module."""

    name: str
    digest: Digest
    number: int
    state: AdapterState = AdapterState.PENDING
    reason: str = ""
    message: str = ""
    # set by registration
    variant: Variant | None = None
    probe: Probe | None = None
    attempts: int = 0
    resting: bool = False
    # set by requests
    pins: int = 0
    asked: int = NOT_ASKED
    # set by the desired set, or by hand
    retired: bool = False
    by_hand: bool = False
    preload: bool = False
    priority: int = 0
    # set when Verified or Failed
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def label(self) -> str:
        """``name@digest``, the value of the adapter header."""
        return f"{self.name}@{self.digest}"

    @property
    def wanted(self) -> bool:
        return not self.retired or self.pins > 0

    def describe(self) -> PodAdapter:
        return PodAdapter(
            name=self.name, digest=self.digest, state=self.state, reason=self.reason, message=self.message[:512]
        )
