"""Which decoder a device gets."""

from __future__ import annotations

from readapt_kernels import triton_driver
from readapt_runtime.engine.engine import Model
from readapt_runtime.engine.pool import PagePool
from readapt_runtime.model.backends import Bounds, choose_backends
from readapt_runtime.model.config import DecoderConfig
from readapt_runtime.model.decoder import Decoder
from readapt_runtime.model.ops import Ops
from readapt_runtime.model.weights import DecoderWeights


def choose_decoder(config: DecoderConfig, weights: DecoderWeights, ops: Ops, pool: PagePool, bounds: Bounds) -> Model:
    """Triton's kernels and recorded steps on a GPU, recorded now; the backends of ``choose_backends`` on a CPU.

    Raises UnsupportedModel where a sliding window would matter within the model length.
    """
    config.require_length(bounds.max_model_len)
    if pool.device.type != "cuda":
        return Decoder(weights, choose_backends(config, ops, pool, bounds))
    from readapt_runtime.model.static_decoder import StaticDecoder, StepOptions

    triton_driver.use_compiled()
    return StaticDecoder(config, weights, ops, pool, bounds, StepOptions(record_at_start=True))
