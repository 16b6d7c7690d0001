"""Every bound of the serving process in one value, checked when made and printed at start."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from readapt_api.errors import Terminal
from readapt_api.memory import memory_bytes
from readapt_api.serving import LINGER_S, REQUEST_LIMIT_S

FULL_SHARD_RANK = 128
"""Adapters of this rank or more are cut both ways over the ranks of a tensor-parallel pod; see ADR 0009."""

_HOST_BYTES = 96 << 20


class BadLimits(Terminal):
    """A limit that makes no sense."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    max_model_len: int = 2048
    """Tokens of prompt and answer together."""
    max_batch_tokens: int = 2048
    """Tokens of one step of the engine."""
    max_rank: int = 64
    """Of an adapter; larger ones fail with a reason."""
    pool_bytes: int = 4 << 30
    """KV blocks and adapter pages together."""
    host_bytes: int | None = None
    """Images of adapters on the host; more are read from disk again when they are wanted. See ``host_room``."""
    max_body_bytes: int = 8 << 20
    """Of a request, counted as received."""
    max_header_bytes: int = 16 << 10
    """Request line and headers together."""
    receive_s: float = 30.0
    """From the first byte of a request to its last."""
    stall_s: float = 30.0
    """How long a client may leave untaken what waits to be sent to it; then it is cut off."""
    read_s: float = 60.0
    """One read of an adapter; one that takes longer fails, and may be tried again once it has ended."""
    step_s: float = 300.0
    """One step of the engine; one that takes longer is taken for hung, and the process ends."""
    request_s: float = REQUEST_LIMIT_S
    """From admission to the last token, waiting for verification included."""
    first_token_s: float = REQUEST_LIMIT_S
    """From admission to the first token; what can no longer make it is refused while it waits."""
    max_tenant_chars: int = 128
    """Of the header that names the tenant."""
    max_connections: int = 4096
    max_in_flight: int = 512
    """Answers being computed; a request counts once per prompt and choice."""
    max_choices: int = 64
    """Prompts times ``n`` of one request."""
    max_stops: int = 16
    max_stop_chars: int = 256
    keep_alive_s: float = 120.0
    """Idle connections stay open this long: longer than clients keep theirs, so that the client closes first."""
    shutdown_s: float = REQUEST_LIMIT_S + LINGER_S
    """From SIGTERM until unfinished answers are cut off."""
    linger_s: float = LINGER_S
    """Quiet time after SIGTERM before idle connections are closed."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise BadLimits(f"{field.name} must be positive, not {value}")

    def host_room(self, largest: int) -> int:
        """``host_bytes``; where they are not given, room for two adapters of ``largest`` bytes, 96 MiB at least."""
        return max(_HOST_BYTES, 2 * largest) if self.host_bytes is None else self.host_bytes

    @property
    def max_elements(self) -> int:
        """Of a request's body: token ids of as many prompts as there may be, and what is beside them."""
        return self.max_choices * self.max_model_len + (64 << 10)

    def within(self, max_positions: int) -> Limits:
        """No longer than the positions that the base was trained for."""
        return replace(self, max_model_len=min(self.max_model_len, max_positions))

    def describe(self) -> dict[str, float | None]:
        """Name -> value, for the log."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def parse_memory(text: str) -> int:
    """Bytes of an amount such as 4Gi, 1.5Gi or 4000M; raises BadLimits for what a resource may not say either."""
    try:
        return memory_bytes(text)
    except ValueError as error:
        raise BadLimits(str(error)) from None
