"""The decoder on a GPU: the same layers over static buffers, so that a step is one upload and one replay.

Between the upload and the tokens nothing waits for the device and nothing depends on the batch but its ``StepShape``.
Steps in which every row decodes are recorded per shape; those with prompts are launched anew. The head and the
sampling follow outside the recorded part: their logits would otherwise be kept for every bucket. A rank among several
launches all steps anew, with the exchange between the launches: no recording holds a collective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from readapt_runtime.engine.core import Batch
from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.pool import PagePool, kv_pages
from readapt_runtime.model.accelerator import Compute
from readapt_runtime.model.backends import Bounds
from readapt_runtime.model.config import DecoderConfig
from readapt_runtime.model.decoder import Layers
from readapt_runtime.model.exchange import Alone, Exchange
from readapt_runtime.model.ops import Ops
from readapt_runtime.model.replay import Buckets, Replays, StepShape
from readapt_runtime.model.rotary import rotary_tables
from readapt_runtime.model.step_buffer import StepLimits
from readapt_runtime.model.step_inputs import StepInputs
from readapt_runtime.model.triton_attention import TritonAttention
from readapt_runtime.model.triton_lora import AdapterPlaces, TritonLora
from readapt_runtime.model.weights import DecoderWeights


@dataclass(frozen=True, slots=True)
class StepOptions:
    record_at_start: bool = False
    """Every bucket, and all that steps with prompts launch, before the first request instead of when it is met."""
    overlap: bool = True
    """Shrink on a side stream, beside the base's product."""


class StaticDecoder:
    """See ``engine.Model``; for a GPU, or a CPU under Triton's interpreter, and pages as the pool's slow index.

    Raises UnsupportedLayout for widths without kernels.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        ops: Ops,
        pool: PagePool,
        bounds: Bounds,
        options: StepOptions = StepOptions(),
        exchange: Exchange | None = None,
    ) -> None:
        accelerator = pool.accelerator
        tokens, rows = bounds.max_batch_tokens, bounds.max_running
        places = AdapterPlaces(config, pool, tokens, rows, bounds.max_rank)
        limits = StepLimits(tokens, rows, kv_pages(bounds.max_model_len), places.layout.num_words)
        self.buckets = Buckets(min(tokens, rows, places.layout.tiles.small_tokens))
        self._layout = places.layout
        self._inputs = StepInputs(limits, places, self.buckets, accelerator, pool.device)
        tables = rotary_tables(
            config.rotary, bounds.max_model_len, torch.empty(0, dtype=pool.dtype, device=pool.device)
        )
        fields = self._inputs.device
        self._attention = TritonAttention(config, pool, tables, limits, fields)
        self._lora = TritonLora(config, pool, places.layout, fields.work, accelerator, options.overlap)
        self._exchange = exchange or Alone()
        self._layers = Layers(weights, ops, self._exchange)
        self.replays = Replays(self._compute, accelerator.record if exchange is None else _again)
        if options.record_at_start:
            self.record()
            self.warm_up()

    @torch.inference_mode()
    def record(self) -> None:
        """Every step that will be replayed, the largest first: the smaller ones fit into its memory."""
        for size in reversed(self.buckets.sizes):
            tiles = self._layout.small_tiles(size)
            self.replays.prepare([StepShape(size, True, False, tiles), StepShape(size, True, False, None)])

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Launches on no work whatever a step with prompts may launch, so that no request waits for a compiler."""
        fields = self._inputs.device
        for tiles in self._layout.all_tiles():
            last = self._compute(StepShape(tiles.num_tokens, True, True, tiles))
        random = (field[:1] for field in (fields.random_rows, fields.temperature, fields.top_p, fields.point))
        draws = Draws(1, *random)
        self._layers.pick(self._layers.logits(last[:1]), draws)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """See ``engine.Model``."""
        shape = self._inputs.fill(self._exchange.plan(batch))
        last = self.replays.run(shape) if self.buckets.holds(shape) else self._compute(shape)
        return self._layers.logits(last.index_select(0, self._inputs.device.sampled[: len(batch.sampled)]))

    @torch.inference_mode()
    def pick(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """See ``engine.Model``."""
        return self._layers.pick(logits, self._inputs.draws(batch))

    def _compute(self, shape: StepShape) -> torch.Tensor:
        """What the head takes, ``[shape.tokens, hidden]``.

        Depends on static memory and the shape alone; among several ranks on what the exchange planned, too.
        """
        attention = self._attention.launches(shape)
        lora = self._lora.launches(shape.tiles, shape.prompts)
        return self._layers.run(self._inputs.device.token_ids[: shape.tokens], attention, lora)


def _again(compute: Compute) -> Compute:
    """In place of a recording: launches anew each time."""
    return compute
