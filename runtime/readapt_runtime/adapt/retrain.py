"""The Retrain rung: a LoRA from scratch, of the old one's modules and ranks, on the training examples.

The learning rate is one of a few that are declared beforehand, judged on the stopping examples: the first that gets
ready is taken, else the best. A scratch adapter wants a larger rate than one that is nearly right. Another rate than
the first is given up where it is behind the best one before it after as many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace

import torch

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.checkpoints import Candidate, Checkpoints
from readapt_runtime.adapt.errors import Diverged
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.tokens import Encoded
from readapt_runtime.adapt.tuning import Lessons, Tuned, Tuning, tune
from readapt_runtime.lora_format import LoraAdapter, LoraModule

RATES = (4.0, 1.0, 16.0)
"""Times the learning rate of ``adaptation.tuning``, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Retrain:
    """Everything the rung needs; ``run`` is its life."""

    base: LoadedBase
    adapter: LoraAdapter
    """Gives its modules, ranks and scales; its weights are not used."""
    lessons: Sequence[Encoded]
    replay: Callable[[], Sequence[Sequence[int]]]
    settings: Tuning
    checkpoints: Callable[[int], Checkpoints]
    """Of the n-th rate."""
    timed: Callable[[str], AbstractContextManager[None]]
    journal: Journal

    def run(self) -> Candidate:
        """Raises Diverged when every rate does."""
        with self.timed("retraining"):
            tried = self._try_rates()
        best = max(tried, key=_order)
        return Candidate(
            best.tuned.adapter,
            best.tuned.best.retention,
            {"learningRate": best.rate, "tuningSteps": best.tuned.best.step},
            {"learningRate": best.rate, "runs": [each.facts() for each in tried]},
        )

    def _try_rates(self) -> list[_Trained]:
        """Up to the first that gets ready; one that diverges counts for nothing."""
        start, lessons = blank(self.adapter), Lessons(self.lessons, self.replay())
        tried: list[_Trained] = []
        diverged: Diverged | None = None
        for number, factor in enumerate(RATES):
            rate, evaluate = factor * self.settings.learning_rate, self.checkpoints(number).evaluate
            settings = replace(self.settings, learning_rate=rate)
            # the base alone: it may be good enough, but as an adapter there is nothing of it to serve
            first = replace(evaluate(0, start, ()), feasible=False, ready=False, clear=False)
            try:
                rival = max(tried, key=_order).tuned.curve if tried else ()
                tuned = tune(self.base, start, first, lessons, settings, evaluate, self.journal, rival)
            except Diverged as error:
                diverged = error
                continue
            tried.append(_Trained(rate, tuned))
            if tuned.best.ready:
                break
        if diverged is not None and not tried:
            raise diverged
        return tried


@dataclass(frozen=True, slots=True)
class _Trained:
    """What came of one rate."""

    rate: float
    tuned: Tuned

    def facts(self) -> dict[str, object]:
        curve = [asdict(evaluation) for evaluation in self.tuned.curve]
        losses, best = list(self.tuned.train_losses), self.tuned.best.step
        return {"learningRate": self.rate, "curve": curve, "trainLosses": losses, "best": best}


def _order(trained: _Trained) -> tuple[bool, float]:
    return trained.tuned.best.order


def blank(adapter: LoraAdapter) -> LoraAdapter:
    """The same modules, ranks and scales with nothing in them: the base alone."""
    return LoraAdapter(
        {
            name: LoraModule(name, torch.zeros_like(m.a), torch.zeros_like(m.b), m.scale)
            for name, m in adapter.modules.items()
        }
    )
