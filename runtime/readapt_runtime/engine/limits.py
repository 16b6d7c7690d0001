"""What bounds the engine's steps, in tokens, sequences and seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from readapt_runtime.engine.worth import Costs


@dataclass(frozen=True, slots=True)
class EngineLimits:
    max_batch_tokens: int = 2048
    """Tokens of one step."""
    max_running: int = 256
    """Sequences that run at once."""
    chunk_tokens: int = 512
    """Prompt tokens of a step in which others decode: what a prompt may add to the time between their tokens."""
    look_ahead: int = 32
    """Waiting sequences that are looked at per step: for admission past a blocked one, and to load adapters early."""
    max_loading: int = 2
    """Adapters that are loaded at once."""
    patience_s: float = 2.0
    """How long others may pass a sequence whose turn it is and whose pages are missing."""
    watermark: float = 0.05
    """Fraction of the pool that loads leave alone where it is not yet the turn of who wants them: of the pages that are
    free or idle for those looked at early, of the free ones for what is preloaded."""
    costs: Costs = field(default_factory=Costs)
