"""After a move of the base: the directions stay, their magnitudes are fitted again.

A few numbers per module, by gradient on the examples of all tasks, which are there for the gate anyway, and on text of
the new base (as in tuning), so that the update is not bent back. Cheaper than ReLoRA's tuning by nothing per step, but
a few dozen steps are enough for so few numbers, and the blocks stay shared with the variant on the old base.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from readapt_api.jobs import AdaptationSettings
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Splits
from readapt_runtime.adapt.retention import text_loss
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.continual.learning import Course, Pupil, descend
from readapt_runtime.continual.losses import ChoiceLoss
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.progress import Log

STEPS = 40
_REPLAY = 0.1
_REPLAY_ROWS = 2


class _WithReplay:
    """Choosing among all tasks' answers, and text of the new base, round and round."""

    def __init__(self, base: LoadedBase, splits: Splits, replay: Sequence[Sequence[int]]) -> None:
        self._base = base
        self._choosing = ChoiceLoss(base, splits.train, splits.choices)
        self._replay = replay
        self._next = 0
        self.lengths = self._choosing.lengths

    def __call__(self, batch: Sequence[int]) -> Tensor:
        loss = self._choosing(batch)
        if not self._replay:
            return loss
        rows = [self._replay[(self._next + i) % len(self._replay)] for i in range(_REPLAY_ROWS)]
        self._next += _REPLAY_ROWS
        return loss + _REPLAY * text_loss(self._base, rows).mean()


def refit(
    base: LoadedBase,
    learned: Learned,
    splits: Splits,
    replay: Sequence[Sequence[int]],
    settings: AdaptationSettings,
    seed: int,
    log: Log,
) -> Learned:
    """The same directions with magnitudes for ``base``. Raises Diverged, Misfit."""
    loss = _WithReplay(base, splits, replay)
    pupil = Pupil(base, learned, LoraAdapter({}), seed)
    steps = min(STEPS, settings.max_steps)
    course = Course(steps, float(settings.learning_rate), settings.batch_size, seed)
    for done, _ in enumerate(descend(pupil, loss, loss.lengths, course), 1):
        log.progress(done / steps, "fitting magnitudes")
    return pupil.outcome()[0]


def gains_of(before: Learned, after: Learned) -> list[float]:
    """By what the magnitudes were multiplied."""
    old, new = before.magnitudes, after.magnitudes
    return [y / x for name, values in old.items() for x, y in zip(values, new[name], strict=True)]
