"""Who is next: by priority, then by the account that was served least, then by arrival.

Accounts are served as in Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024):
every account has a counter of what it was given, prompt tokens once and answer tokens twice; the smallest counter is
next, and an account that comes back is lifted to the smallest of those that wait, so idle time saves nothing up.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from readapt_runtime.engine.core import Sequence

_ANSWER_TOKEN = 2.0
_PRUNE_FROM = 1024

_Line = tuple[int, str]
"""Priority and account."""


class WaitingQueue:
    """One line per priority and account; state is the lines and the counters."""

    def __init__(self) -> None:
        self._lines: dict[_Line, deque[Sequence]] = {}
        self._served: dict[str, float] = {}
        self._floor = 0.0
        self._length = 0
        self._prune_at = _PRUNE_FROM

    def add(self, seq: Sequence) -> None:
        """Joins at the end of its line."""
        self._lift(seq.request.account)
        self._line(seq).append(seq)
        self._length += 1

    def put_back(self, seq: Sequence) -> None:
        """Joins at the head of its line: it was admitted before."""
        self._lift(seq.request.account)
        self._line(seq).appendleft(seq)
        self._length += 1

    def remove(self, seq: Sequence) -> None:
        line = _line_of(seq)
        self._lines[line].remove(seq)
        self._length -= 1
        if not self._lines[line]:
            del self._lines[line]
            self._floor = max(self._floor, self._served[line[1]]) if not self._lines else self._floor
        if len(self._served) > self._prune_at:
            self._prune()

    def charge_prompt(self, seq: Sequence) -> None:
        """The account is given the prompt."""
        self._charge(seq, len(seq.request.prompt))

    def charge_answer(self, seq: Sequence) -> None:
        """The account is given one token of an answer."""
        self._charge(seq, _ANSWER_TOKEN)

    def first(self, count: int) -> list[Sequence]:
        """The next ``count`` in turn, if nothing else happens."""
        heads = [self._place(line, 0, 0) for line in self._lines]
        heapq.heapify(heads)
        turn: list[Sequence] = []
        while heads and len(turn) < count:
            (_, served, _), line, at = heapq.heappop(heads)
            seq = self._lines[line][at]
            turn.append(seq)
            if at + 1 < len(self._lines[line]):
                given = served - self._served[line[1]] + (0 if seq.preemptions else len(seq.request.prompt))
                heapq.heappush(heads, self._place(line, at + 1, given))
        return turn

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def __len__(self) -> int:
        return self._length

    def _place(self, line: _Line, at: int, given: float) -> tuple[tuple[int, float, int], _Line, int]:
        """Where a sequence of a line stands among all, once its account was given that many tokens more."""
        priority, account = line
        return (-priority, self._served[account] + given, self._lines[line][at].arrival), line, at

    def _charge(self, seq: Sequence, tokens: float) -> None:
        account = seq.request.account
        self._served[account] = self._served.get(account, self._floor) + tokens

    def _line(self, seq: Sequence) -> deque[Sequence]:
        return self._lines.setdefault(_line_of(seq), deque())

    def _lift(self, account: str) -> None:
        active = [self._served[line[1]] for line in self._lines]
        if not any(line[1] == account for line in self._lines):
            self._served[account] = max(self._served.get(account, 0.0), min(active, default=self._floor))

    def _prune(self) -> None:
        """Forgets accounts that would be lifted anyway, and of the others all but those that were given most."""
        active = {line[1] for line in self._lines}
        lowest = min((self._served[account] for account in active), default=self._floor)
        away = [
            (served, account) for account, served in self._served.items() if account not in active and served > lowest
        ]
        kept = {account for _, account in heapq.nlargest(_PRUNE_FROM, away)} | active
        self._served = {account: served for account, served in self._served.items() if account in kept}
        self._prune_at = 2 * max(_PRUNE_FROM, len(kept))


def _line_of(seq: Sequence) -> _Line:
    return seq.request.priority, seq.request.account
