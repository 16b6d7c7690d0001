"""What is to be carried over which move; the words of ``repair`` and ``rungs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from readapt_api.contract import Digest
from readapt_api.digest import hex_of
from readapt_api.jobs import AdaptationSettings, GateSettings
from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Splits
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.lora_format import LoraAdapter
from readapt_runtime.lowrank import LowRank


@dataclass(frozen=True, slots=True)
class Move:
    """Two versions of a base in memory and the low-rank drift from old to new."""

    old: LoadedBase
    new: LoadedBase
    drift: Mapping[str, LowRank]


@dataclass(frozen=True, slots=True)
class Item:
    """One adapter to carry over."""

    name: str
    adapter: LoraAdapter
    """On the old base; what the gate compares with."""
    reference: Digest
    splits: Splits
    data: Digest
    adaptation: AdaptationSettings
    gate: GateSettings
    input_hash: Digest
    """Names the work, wherever it is done and whatever it is grouped with."""
    learned: Learned | None = None
    """The blocks behind ``adapter``, when it learned task after task."""

    @property
    def seed(self) -> int:
        return seed_of(self.input_hash)


def seed_of(input_hash: Digest) -> int:
    """Equal work is done with equal dice."""
    return int(hex_of(input_hash)[:6], 16)
