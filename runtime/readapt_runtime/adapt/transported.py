"""The Transport rung: which texts are read, and what is left of the base update afterwards.

No label is needed, but where completions are known they are read too: an answer of several tokens depends on what the
model does while it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.checkpoints import Candidate
from readapt_runtime.adapt.data import Example, Splits
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.adapt.retention import Yardstick, retention, text_losses
from readapt_runtime.adapt.tokens import encode, joint_ids
from readapt_runtime.adapt.transport import Texts, transport
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.progress import Log

PROMPTS = 64
"""Four times as many did no better on a 135M model (92.0 % of 91.0 % before, against 93.0 %)."""
SEQUENCES = 16
"""Of the new base's own text."""


@dataclass(frozen=True, slots=True)
class Transport:
    """Everything the rung needs; ``run`` is its life."""

    old: LoadedBase
    new: LoadedBase
    adapter: LoraAdapter
    splits: Splits
    replay: Callable[[], Sequence[Sequence[int]]]
    yardstick: Yardstick
    log: Log

    def run(self) -> Candidate:
        """Where the two bases cut no prompt into the same tokens the adapter stays as it is."""
        texts = Texts(self._task(), [(self.new.start, *row) for row in self.replay()[:SEQUENCES]])
        found = transport(self.old, self.new, self.adapter, texts, self.log) if texts.task else self.adapter
        with attached(self.new.model, side_factors(found, self.new)):
            kept = retention(self.yardstick, text_losses(self.new, self.yardstick.tokens))
        facts: dict[str, object] = {"prompts": len(texts.task), "sequences": len(texts.free)}
        return Candidate(found, kept, facts, {**facts, "tokens": sum(map(len, texts.task))})

    def _task(self) -> list[Sequence[int]]:
        """The token ids that both bases make of the first texts, in an order that depends on nothing but them."""
        examples = sorted((*self.splits.train, *(Example(p, "") for p in self.splits.inputs)), key=_order)[:PROMPTS]
        return [
            ours
            for ours, theirs in zip(self._ids(self.new, examples), self._ids(self.old, examples), strict=True)
            if ours == theirs
        ]

    def _ids(self, base: LoadedBase, examples: Sequence[Example]) -> list[Sequence[int]]:
        answered = [encode(base, [e])[0].ids if e.completion else None for e in examples]
        prompts = iter(joint_ids(base, [e.prompt for e in examples if not e.completion] or [""]))
        return [tuple(next(prompts)[-base.max_tokens :]) if ids is None else ids for ids in answered]


def _order(example: Example) -> str:
    return example.rank("transport")
