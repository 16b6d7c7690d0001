"""The vocabulary of the engine: what a request is, what a step computes, what comes back.

Everything else in the engine does things to these nouns. A request comes from the server, becomes a sequence at
admission, contributes one row to each step, and is answered by events.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count, groupby

import torch

from readapt_api.contract import Digest
from readapt_api.errors import ReadaptError, Terminal, Transient
from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.pool import Entry
from readapt_runtime.engine.worth import Heat
from readapt_runtime.model.adapter_image import AdapterImage, Shares


class RequestTooLarge(Terminal):
    """The request needs more tokens or pages than there will ever be."""


class DeadlineExceeded(Transient):
    """The request was not finished by its deadline."""


class DeadlineUnreachable(Transient):
    """The first token can no longer come in time; nothing was computed."""


class NonFiniteLogits(Terminal):
    """The model answered with NaN or infinity for this request."""


class EngineDead(Transient):
    """The engine stopped; the process is about to exit."""


class FinishReason(StrEnum):
    STOP = "stop"
    """An end-of-sequence token."""
    LENGTH = "length"
    """``max_tokens``."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    top_log_probs: int | None = None
    """How many of the likeliest tokens are reported with every token; None: no log-probabilities at all."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Natural logarithms of the model's probabilities for one place, before temperature and top-p."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """(token, log-probability) of the likeliest, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Token:
    """The next token of an answer; ``finish`` on the last one, ``scores`` where they were asked for."""

    token_id: int
    finish: FinishReason | None
    scores: TokenScores | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Answer to a scoring request: log-probabilities of its ``score_ids`` after its last token."""

    log_probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """The request ended without a complete answer."""

    error: ReadaptError


Event = Token | Scores | Failure

_variant_numbers = count(1)
_arrivals = count(1)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Variant:
    """The weights of one adapter, by identity: the same name loaded again is another variant."""

    name: str
    digest: Digest
    image: AdapterImage
    number: int = field(default_factory=lambda: next(_variant_numbers))


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One answer to compute, with the variant that computes all of it. Immutable; compared by identity."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    emit: Callable[[Event], None]
    """Called on the engine's thread; must not block."""
    variant: Variant | None = None
    deadline: float = math.inf
    """On the engine's clock, in seconds."""
    first_token_by: float = math.inf
    """Likewise; a request that can no longer make it is refused while it waits."""
    tenant: str = ""
    """Prefixes are shared within a tenant only."""
    account: str = ""
    """What is served is shared out evenly between the accounts that wait."""
    priority: int = 0
    """Larger ones are admitted first and preempted last."""
    score_ids: tuple[int, ...] = ()
    """Not empty: a scoring request. All but the last prompt token are prefilled, the last one is decoded."""

    @property
    def max_length(self) -> int:
        """Tokens whose keys and values may have to be kept."""
        return len(self.prompt) + (0 if self.score_ids else self.sampling.max_tokens)


@dataclass(slots=True, eq=False, weakref_slot=True)
class ResidentAdapter:
    """A variant whose pages are in the pool."""

    variant: Variant
    entry: Entry
    flat: tuple[torch.Tensor, ...] | None
    """Per layer a view of its rank rows, when its pages are neighbours in memory."""
    shares: Shares | None = None
    """Of the other ranks, until a step has told them to copy theirs into the pool."""


@dataclass(eq=False, slots=True)
class Root:
    """Where the cached prefixes of one generation and tenant begin."""

    variant: Variant | None
    tenant: str
    children: dict[tuple[int, ...], Block] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Block:
    """Keys and values of up to 16 tokens."""

    entry: Entry
    seconds_per_page: float
    users: int = 1
    heat: Heat = field(default_factory=Heat)
    # set when it is cached
    root: Root | None = None
    parent: Block | Root | None = None
    tokens: tuple[int, ...] = ()
    children: dict[tuple[int, ...], Block] = field(default_factory=dict)

    @property
    def page(self) -> int:
        return self.entry.pages[0]


@dataclass(eq=False, slots=True)
class BlockTable:
    """The blocks of one sequence, in order."""

    blocks: list[Block]
    pages: list[int]
    """Of the blocks."""
    num_cached: int
    """Blocks at the beginning that are in the prefix cache."""
    extends_cache: bool = True
    """Off once an equal block of another sequence was there first: what follows is not cached."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A request in the engine."""

    request: Request
    tokens: list[int]
    arrival: int = field(default_factory=lambda: next(_arrivals))
    standing: tuple[int, int] = field(init=False)
    """Smaller ones keep their pages when larger ones are preempted: by priority, then by arrival."""
    # set when ``lateness`` first asks: its blocks' identities
    chain: tuple[int, ...] | None = None
    # set while it waits: since when it is its turn and pages are missing
    blocked_since: float | None = None
    # set at admission, taken back when it is preempted
    kv: BlockTable | None = None
    adapter: ResidentAdapter | None = None
    # counted by the scheduler
    preemptions: int = 0
    # set at admission and advanced when a step settles: tokens whose keys and values are in the pool
    computed: int = 0
    # set by ``Draws`` on the first random draw
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        self.standing = -self.request.priority, self.arrival

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        return self.pending == 1 and self.computed > 0

    @property
    def has_answered(self) -> bool:
        return len(self.tokens) > len(self.request.prompt)

    def next_count(self, budget: int) -> int:
        """How many pending tokens the next step takes."""
        splits_last = bool(self.request.score_ids) and self.pending > 1
        return min(self.pending - splits_last, budget)


@dataclass(frozen=True, slots=True)
class Row:
    """What one sequence contributes to a step: its tokens ``[start, start + count)``."""

    seq: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the row ends with the sequence's last token, so that its logits are wanted."""
        return self.start + self.count == len(self.seq.tokens)


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring tokens ``[start, stop)`` of the batch that one adapter works on."""

    adapter: ResidentAdapter
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: prefill and decode rows together, one ragged run of tokens, sorted by adapter, base rows first.

    Its tensors lie on the host; who computes on a device takes them there.
    """

    rows: tuple[Row, ...]
    segments: tuple[Segment, ...]
    token_ids: torch.Tensor  # int64 [tokens]
    positions: torch.Tensor  # int64 [tokens]
    sampled: torch.Tensor  # int64 [rows that sample]: index of their last token
    draws: Draws  # of the rows that sample

    @classmethod
    def of(cls, rows: Rows[Row]) -> Batch:
        """Takes the random numbers of the rows that sample: once for each step that is computed."""
        ordered = tuple(sorted(rows, key=_adapter_number))
        ends: list[int] = []
        ids: list[int] = []
        positions: list[int] = []
        for row in ordered:
            ids += row.seq.tokens[row.start : row.start + row.count]
            positions += range(row.start, row.start + row.count)
            ends.append(len(ids))
        sampled = [end - 1 for row, end in zip(ordered, ends, strict=True) if row.samples]
        return cls(
            rows=ordered,
            segments=_segments(ordered),
            token_ids=torch.tensor(ids, dtype=torch.int64),
            positions=torch.tensor(positions, dtype=torch.int64),
            sampled=torch.tensor(sampled, dtype=torch.int64),
            draws=Draws.of([row.seq for row in ordered if row.samples]),
        )

    def on(self, device: torch.device) -> Batch:
        """The same, with what the layers read on that device."""
        if device == self.token_ids.device:
            return self
        ids, positions, sampled = (field.to(device) for field in (self.token_ids, self.positions, self.sampled))
        return replace(self, token_ids=ids, positions=positions, sampled=sampled)

    @property
    def sampling_rows(self) -> list[Row]:
        """The rows of ``sampled``, in its order."""
        return [row for row in self.rows if row.samples]


def _adapter_number(row: Row) -> int:
    return row.seq.adapter.variant.number if row.seq.adapter else 0


def _segments(rows: Rows[Row]) -> tuple[Segment, ...]:
    found, start = [], 0
    for _, group in groupby(rows, key=_adapter_number):
        members = list(group)
        stop = start + sum(row.count for row in members)
        if adapter := members[0].seq.adapter:
            found.append(Segment(adapter, start, stop))
        start = stop
    return tuple(found)
