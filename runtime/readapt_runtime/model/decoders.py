"""Which decoder goes with a pool."""

from __future__ import annotations

from readapt_kernels import triton_driver
from readapt_runtime.engine.engine import Model
from readapt_runtime.engine.pool import PageOrder, PagePool
from readapt_runtime.model.backends import Bounds, choose_backends
from readapt_runtime.model.config import DecoderConfig
from readapt_runtime.model.decoder import Decoder
from readapt_runtime.model.exchange import Exchange
from readapt_runtime.model.ops import Ops
from readapt_runtime.model.weights import DecoderWeights


def choose_decoder(
    config: DecoderConfig,
    weights: DecoderWeights,
    ops: Ops,
    pool: PagePool,
    bounds: Bounds,
    exchange: Exchange | None = None,
) -> Model:
    """Triton's kernels where a page's layers lie together, as on a GPU; the backends of ``choose_backends`` elsewhere.

    Everything that can be is recorded and compiled now; with an ``exchange`` every rank is to be here at once. Raises
    UnsupportedModel where a sliding window would matter within the model length.
    """
    config.require_length(bounds.max_model_len)
    if pool.order is PageOrder.LAYER_MAJOR:
        return Decoder(weights, choose_backends(config, ops, pool, bounds), exchange)
    from readapt_runtime.model.static_decoder import StaticDecoder, StepOptions

    triton_driver.use_compiled()
    return StaticDecoder(config, weights, ops, pool, bounds, StepOptions(record_at_start=True), exchange)
