"""The Refresh rung: the old pair answers prompts, and an adapter on the new base learns from its answers.

No label is needed: what is to be kept is how the old pair behaves. It starts from the better of Copy and what ReLoRA
came to, by the grade on the stopping examples, and reads each answer at most once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.checkpoints import Candidate, Checkpoints
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.teacher import Teacher
from readapt_runtime.adapt.tokens import encode
from readapt_runtime.adapt.tuning import Lessons, Tuning, tune
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter

_LEAST = 8
"""Fewer answers than this teach nothing."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """Everything the rung needs; ``run`` is its life."""

    base: LoadedBase
    starts: Mapping[str, LoraAdapter]
    """By name, the cheapest first: of equal ones the first is taken."""
    teacher: Teacher
    prompts: Sequence[str]
    replay: Callable[[], Sequence[Sequence[int]]]
    settings: Tuning
    checkpoints: Checkpoints
    timed: Callable[[str], AbstractContextManager[None]]
    journal: Journal

    def run(self) -> Candidate:
        """Raises BadData when the old pair answers too little, Diverged."""
        with self.timed("teaching"):
            taught = self._taught()
        with self.timed("evaluation"):
            graded = {name: self.checkpoints.evaluate(0, start, ()) for name, start in self.starts.items()}
        name = max(graded, key=lambda each: graded[each].order)
        with self.timed("tuning"):
            lessons, evaluate = Lessons(encode(self.base, taught), self.replay()), self.checkpoints.evaluate
            start, first = self.starts[name], graded[name]
            tuned = tune(self.base, start, first, lessons, self.settings, evaluate, self.journal)
        return Candidate(
            tuned.adapter,
            tuned.best.retention,
            {"start": name, "answers": len(taught), "tuningSteps": tuned.best.step},
            {
                "starts": {each: asdict(evaluation) for each, evaluation in graded.items()},
                "start": name,
                "answers": len(taught),
                "curve": [asdict(evaluation) for evaluation in tuned.curve],
                "trainLosses": list(tuned.train_losses),
                "best": tuned.best.step,
            },
        )

    def _taught(self) -> tuple[Example, ...]:
        """Answers to as many prompts as can be read once, in an order that depends on nothing but them."""
        enough = self.settings.max_steps * self.settings.batch_size
        chosen = sorted(self.prompts, key=_rank)[:enough]
        taught = self.teacher.teach(f"refresh-{enough}", chosen)
        if len(taught) < _LEAST:
            raise BadData(f"the old pair has an answer to {len(taught)} of {len(chosen)} prompts; {_LEAST} are needed")
        return taught


def _rank(prompt: str) -> str:
    return hashlib.sha256(f"refresh\0{prompt}".encode()).hexdigest()
