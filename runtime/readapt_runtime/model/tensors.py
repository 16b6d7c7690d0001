"""The tensors of a checkpoint against those that its config wants.

In: the header of a checkpoint and the transformers config. Out: the tensors that count. Next: ``fetch`` publishes the
model, adaptation loads it; a misfit is said here by name, before transformers says it in terms of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from readapt_runtime.model.family import UnsupportedModel
from readapt_runtime.safe_tensors import BadWeights, TensorInfo

_IGNORED = "rotary_emb.inv_freq"
_HEAD = "lm_head.weight"


def check_tensors(found: Mapping[str, TensorInfo], config: PretrainedConfig) -> Mapping[str, TensorInfo]:
    """``found`` without what transformers ignores; raises BadWeights unless names and shapes are those of the config.

    The expected ones come from the model class itself, built without memory on the meta device. Raises
    UnsupportedModel when it cannot be built.
    """
    expected = _expected(config)
    if config.tie_word_embeddings and _HEAD not in found:
        expected.pop(_HEAD, None)
    infos = {name: info for name, info in found.items() if not name.endswith(_IGNORED)}
    for name in sorted(infos.keys() ^ expected.keys()):
        known = "the config has no such tensor" if name in infos else "the config wants it, the weights lack it"
        raise BadWeights(f"{name}: {known}")
    for name, shape in expected.items():
        if infos[name].shape != shape:
            raise BadWeights(f"{name}: shape {list(infos[name].shape)}, the config wants {list(shape)}")
    return infos


def _expected(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    if (padding := config.pad_token_id) is not None and padding >= config.vocab_size:
        raise UnsupportedModel(f"config.json: pad_token_id is {padding}, vocab_size is {config.vocab_size}")
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UnsupportedModel(f"config.json: transformers can make no model of it: {why}"[:400]) from error
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
