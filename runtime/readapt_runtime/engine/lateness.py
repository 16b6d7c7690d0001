"""Which waiting requests can no longer have their first token in time: S-LoRA's early abort (arXiv:2311.03285, 4.4).

In: who waits, in turn, and who runs. Out: those for whom even the work that certainly comes before is too much at the
pace measured last. That is a lower bound: blocks that are cached, or that somebody before computes, count once; who is
passed because of pages or an adapter does not count, nor who would stand behind in a step.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from readapt_runtime.engine.core import Block, Sequence
from readapt_runtime.engine.memory import Memory
from readapt_runtime.engine.pace import Pace
from readapt_runtime.engine.pool import BLOCK_TOKENS
from readapt_runtime.engine.scheduler import Scheduler


def find_late(scheduler: Scheduler, memory: Memory, pace: Pace, now: float) -> list[Sequence]:
    """Asks no prefix where every limit is further away than all the work there is."""
    limits = [seq.request.first_token_by for seq in scheduler.waiting if _is_limited(seq)]
    if not limits:
        return []
    prompts = [seq for seq in scheduler.running if not seq.decoding]
    all_tokens = sum(seq.pending for seq in (*prompts, *scheduler.waiting))
    if now + pace.seconds(all_tokens) <= min(limits):
        return []
    backlog = _Backlog(memory, prompts)
    late: list[Sequence] = []
    for seq in scheduler.waiting.first(len(scheduler.waiting)):
        own = backlog.own(seq)
        if _is_limited(seq) and now + pace.seconds(backlog.before(seq) + own) > seq.request.first_token_by:
            late.append(seq)
        else:
            backlog.add(seq, own)
    return late


def _is_limited(seq: Sequence) -> bool:
    """Whether there is a limit to the first token that can pass before the request's deadline does."""
    return not seq.has_answered and seq.request.first_token_by < seq.request.deadline


class _Backlog:
    """Prompt tokens of those before, and which blocks will be there once they are computed."""

    def __init__(self, memory: Memory, prompts: Iterable[Sequence]) -> None:
        self._memory = memory
        self._blocks: dict[int, Block | None] = {}  # by what the chain has for them; None: still to be computed
        self._work: list[tuple[tuple[int, int], int]] = []  # standing and tokens, sorted
        self._total = 0
        for seq in prompts:
            self._blocks.update(dict.fromkeys(_chain(seq), None))
            self._put(seq, seq.pending)

    def before(self, seq: Sequence) -> int:
        """Tokens that are computed before its own."""
        at = bisect_left(self._work, (seq.standing, 0))
        return self._total if at == len(self._work) else sum(tokens for _, tokens in self._work[:at])

    def own(self, seq: Sequence) -> int:
        """Its tokens that are neither cached nor computed by somebody before."""
        chain = _chain(seq)
        known = bisect_left(chain, 1, key=lambda block: block not in self._blocks)  # beginnings are known as a whole
        after = self._blocks[chain[known - 1]] if known else None
        if after is not None or not known:
            for block in self._memory.cached_after(seq, after, known * BLOCK_TOKENS)[: len(chain) - known]:
                self._blocks[chain[known]] = block
                known += 1
        return len(seq.tokens) - known * BLOCK_TOKENS

    def add(self, seq: Sequence, own: int) -> None:
        """One more that is computed before others, if nothing keeps it from its turn."""
        variant = seq.request.variant
        has_adapter = variant is None or self._memory.residency.is_resident(variant)
        self._put(seq, own if has_adapter and seq.blocked_since is None else 0)
        for block in reversed(_chain(seq)):
            if block in self._blocks:
                break
            self._blocks[block] = None

    def _put(self, seq: Sequence, tokens: int) -> None:
        insort(self._work, (seq.standing, tokens))
        self._total += tokens


def _chain(seq: Sequence) -> tuple[int, ...]:
    """A number for each block of the prompt that may be cached: of all that the block depends on."""
    if seq.chain is None:
        prompt, request, numbers = seq.request.prompt, seq.request, []
        last = hash((request.variant, request.tenant))
        for stop in range(BLOCK_TOKENS, len(prompt), BLOCK_TOKENS):
            last = hash((last, prompt[stop - BLOCK_TOKENS : stop]))
            numbers.append(last)
        seq.chain = tuple(numbers)
    return seq.chain
