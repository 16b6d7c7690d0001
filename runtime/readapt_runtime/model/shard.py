"""One rank's share of a decoder under tensor parallelism: which part of each matrix it holds.

Megatron's cut (arXiv 1909.08053): q, k, v, gate and up by output rows, whole heads together; o and down by input
columns, so that one sum over the ranks follows each of the two. In: the config of the whole model. Out: the config of
the share, with which everything else (weights, pool, backends, adapter images) works as with a smaller model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from readapt_runtime.model.config import DecoderConfig, Linear
from readapt_runtime.model.family import UnsupportedModel

COLUMN_PARALLEL = frozenset({Linear.QKV, Linear.GATE_UP})
"""The linears whose outputs are shared out; the others' inputs are."""
INNER_STEP = 16
"""A share of the intermediate size is a multiple of this: the narrowest row that the LoRA kernels take."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Elements ``[start, start + count)`` of an axis of ``total``, then zeros up to ``size``."""

    start: int
    count: int
    size: int
    total: int

    @classmethod
    def all_of(cls, total: int) -> Cut:
        return cls(0, total, total, total)

    @classmethod
    def even(cls, total: int, rank: int, world: int, step: int = 1) -> Cut:
        """Shares of equal size, a multiple of ``step``: the first ones full, the last ones padded or empty."""
        size = -(-total // (world * step)) * step
        start = min(rank * size, total)
        return cls(start, min(size, total - start), size, total)

    @property
    def is_whole(self) -> bool:
        return (self.start, self.count, self.size) == (0, self.total, self.total)


@dataclass(frozen=True, slots=True)
class Shard:
    """The share of ``rank`` out of ``world``; raises UnsupportedModel where heads cannot be shared out."""

    whole: DecoderConfig
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        heads, kv_heads = self.whole.num_heads, self.whole.num_kv_heads
        if heads % self.world or (kv_heads % self.world and self.world % kv_heads):
            raise UnsupportedModel(
                f"not supported: {heads} heads over {kv_heads} key/value heads on {self.world} ranks; the ranks must "
                "divide the heads, and divide the key/value heads or be a multiple of them"
            )

    @property
    def config(self) -> DecoderConfig:
        """Of the share; the vocabulary stays whole, since the embedding does."""
        if self.world == 1:
            return self.whole
        return replace(
            self.whole,
            num_heads=self.whole.num_heads // self.world,
            num_kv_heads=max(1, self.whole.num_kv_heads // self.world),
            intermediate_size=self._inner.size,
        )

    @property
    def vocab(self) -> Cut:
        """Rows of the output head."""
        return Cut.even(self.whole.vocab_size, self.rank, self.world)

    @property
    def hidden(self) -> Cut:
        """Outputs of o and down, where a fully sharded adapter cuts its B."""
        return Cut.even(self.whole.hidden_size, self.rank, self.world)

    def rows(self, module: str) -> Cut:
        """Output features of a module of a layer, such as ``mlp.up_proj``."""
        match module:
            case "self_attn.q_proj":
                return self._queries
            case "self_attn.k_proj" | "self_attn.v_proj":
                return self._keys
            case "mlp.gate_proj" | "mlp.up_proj":
                return self._inner
            case _:
                return Cut.all_of(self.whole.hidden_size)

    def columns(self, module: str) -> Cut:
        """Input features of a module of a layer."""
        match module:
            case "self_attn.o_proj":
                return self._queries
            case "mlp.down_proj":
                return self._inner
            case _:
                return Cut.all_of(self.whole.hidden_size)

    @property
    def _queries(self) -> Cut:
        return Cut.even(self.whole.num_heads * self.whole.head_dim, self.rank, self.world)

    @property
    def _keys(self) -> Cut:
        """Ranks beyond the key/value heads hold copies: the one that their queries share."""
        heads, dim = self.whole.num_kv_heads, self.whole.head_dim
        size = max(1, heads // self.world) * dim
        return Cut(self.rank * heads // self.world * dim, size, size, heads * dim)

    @property
    def _inner(self) -> Cut:
        """Padded with zeros, which is exact: silu(0) · 0 adds nothing."""
        step = INNER_STEP if self.world > 1 else 1
        return Cut.even(self.whole.intermediate_size, self.rank, self.world, step)
