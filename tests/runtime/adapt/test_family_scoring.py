"""What search and scoring compute on the new families: transformers' and PEFT's logits, within what is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from readapt_runtime.adapt.base import load_base
from readapt_runtime.adapt.factors import attached, side_factors
from readapt_runtime.lora_format import linear_shapes, read_adapter
from readapt_runtime.model.family import UnsupportedModel
from readapt_testing.tiny_families import FAMILIES, Reference, write_family, write_lora

DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize("family", ["mistral untied", "qwen2", "qwen3", "smollm3"])
@torch.no_grad()
def test_an_adapter_beside_the_base_answers_as_peft_does(tmp_path: Path, family: str) -> None:
    folder = write_family(tmp_path / "base", FAMILIES[family])
    adapter = write_lora(tmp_path / "adapter", folder)
    base = load_base(folder, DIGEST)
    shapes = linear_shapes(json.loads((folder / "config.json").read_text()))
    tokens = torch.arange(40)[None]
    with attached(base.model, side_factors(read_adapter(adapter, shapes), base)):
        found = base.logits(tokens, tokens, torch.ones(1, 40, 40, dtype=torch.bool).tril(), last=5)[0]
    expected = Reference(folder, adapter).logits(tuple(range(36)), list(range(36, 41)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_examples_are_no_longer_than_a_sliding_window(tmp_path: Path) -> None:
    """The masks of the scoring leave the window out, which makes no difference within it."""
    options = {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 32}
    assert load_base(write_family(tmp_path / "base", options), DIGEST).max_tokens == 32


def test_a_base_that_cannot_be_served_is_not_adapted_to(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "base", FAMILIES["qwen2"])
    config = folder / "config.json"
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_parameters": rope}))
    with pytest.raises(UnsupportedModel, match="rope_type 'dynamic'"):
        load_base(folder, DIGEST)
