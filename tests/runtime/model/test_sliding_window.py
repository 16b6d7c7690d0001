"""A sliding window is refused where it would change an answer, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.model.config import read_config
from readapt_runtime.model.family import UnsupportedModel
from readapt_runtime.server.limits import Limits
from readapt_runtime.server.startup import Options, build
from readapt_testing.tiny_engine import Tiny
from readapt_testing.tiny_families import Reference, answer_and_logits, write_family

WINDOW = 32
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW}
LIMITS = EngineLimits(max_batch_tokens=24)

RULE: dict[str, tuple[dict[str, Any], int | None]] = {
    "mistral": ({"model_type": "mistral", "sliding_window": WINDOW}, WINDOW),
    "mistral says nothing": ({"model_type": "mistral"}, 4096),
    "mistral without": ({"model_type": "mistral", "sliding_window": None}, None),
    "qwen2, not in use": ({"model_type": "qwen2", "sliding_window": WINDOW, "use_sliding_window": False}, None),
    "qwen2, in the upper layers": ({"model_type": "qwen2", **SLIDING, "max_window_layers": 2}, WINDOW),
    "qwen2, above the last layer": ({"model_type": "qwen2", **SLIDING, "max_window_layers": 4}, None),
    "qwen3, in all layers": ({"model_type": "qwen3", **SLIDING, "max_window_layers": 0}, WINDOW),
    "qwen3, layer by layer": (
        {"model_type": "qwen3", **SLIDING, "layer_types": ["full_attention", "sliding_attention"] * 2},
        WINDOW,
    ),
    "qwen3, full in each": ({"model_type": "qwen3", **SLIDING, "layer_types": ["full_attention"] * 4}, None),
    "smollm3, where nothing rotates": ({"model_type": "smollm3", **SLIDING}, WINDOW),
    "smollm3, not in use": ({"model_type": "smollm3", "sliding_window": WINDOW}, None),
    "llama has none": ({"model_type": "llama", "sliding_window": WINDOW}, None),
}


@pytest.mark.parametrize(("options", "window"), RULE.values(), ids=RULE.keys())
def test_the_window_is_that_of_the_layers_that_slide(
    tmp_path: Path, options: dict[str, Any], window: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"num_key_value_heads": 2} | options))
    config = read_config(tmp_path)
    assert config.sliding_window == window
    config.require_length(window or 1 << 30)
    if window is not None:
        with pytest.raises(UnsupportedModel, match=f"sliding_window={window} .*up to {window + 1} tokens"):
            config.require_length(window + 1)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": WINDOW}
    return write_family(tmp_path_factory.mktemp("mistral") / "base", options)


def test_a_sequence_as_long_as_the_window_is_exact_and_a_longer_one_would_not_be(mistral: Path) -> None:
    prompt = tuple(range(20))
    found = answer_and_logits(Tiny(mistral, {}), {prompt: None}, WINDOW - 20 + 1, LIMITS, max_model_len=WINDOW)
    answer, logits = found[prompt]
    windowed = Reference(mistral).logits(prompt, answer)
    torch.testing.assert_close(logits, windowed, rtol=1e-5, atol=1e-4)

    config = mistral / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"sliding_window": None}))
    everything = Reference(mistral).logits(prompt, [*answer, 7, 8])
    config.write_text(before)
    beyond = Reference(mistral).logits(prompt, [*answer, 7, 8])
    torch.testing.assert_close(beyond[: len(answer)], everything[: len(answer)])
    assert not torch.allclose(beyond[len(answer)], everything[len(answer)], atol=1e-2)


def test_a_server_that_could_pass_the_window_does_not_start(mistral: Path) -> None:
    limits = Limits(max_model_len=WINDOW + 1, pool_bytes=1 << 20)
    with pytest.raises(UnsupportedModel, match=f"a maximum model length of {WINDOW} or less"):
        build(Options(base=mistral, served_name="mistral", limits=limits))
    with pytest.raises(UnsupportedModel, match="sliding_window"):
        Tiny(mistral, {}).engine()
    allowed = Limits(max_model_len=WINDOW, pool_bytes=1 << 20)
    assert build(Options(base=mistral, served_name="mistral", limits=allowed)).limits.max_model_len == WINDOW
