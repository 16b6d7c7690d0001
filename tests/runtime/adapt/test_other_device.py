"""What is computed on a GPU, without one: fake tensors that say they are on one refuse to meet those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaForCausalLM

from readapt_runtime.adapt.base import LoadedBase
from readapt_runtime.adapt.data import Example
from readapt_runtime.adapt.factors import SideFactors, attached, side_factors
from readapt_runtime.adapt.layerwise import Stream
from readapt_runtime.adapt.retention import sample, text_loss
from readapt_runtime.adapt.scoring import Question, choice_scores, grow, scores
from readapt_runtime.adapt.search import Point, SideBySide
from readapt_runtime.adapt.tokens import Encoded, answer_losses, mean_losses
from readapt_runtime.adapt.training import Descent, Group, Pace, leaves_of, snapshot
from readapt_runtime.continual.learning import _Directions
from readapt_runtime.continual.losses import ChoiceLoss
from readapt_runtime.lora_format import LoraAdapter, LoraModule
from readapt_testing.tiny_llama import byte_tokenizer, tiny_config

NAME = "model.layers.0.self_attn.q_proj"
WIDTH, RANK = 64, 4
ROWS = [Encoded((5, 6, 7, 8), 2), Encoded((9, 10, 11), 2)]


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    with FakeTensorMode():
        yield torch.device("cuda", 0)


@pytest.fixture
def base(gpu: torch.device) -> LoadedBase:
    config = tiny_config(layers=2)
    config._attn_implementation = "eager"
    with gpu:
        model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    return LoadedBase(f"sha256:{'0' * 64}", model, byte_tokenizer(), 64, 64)


def adapter() -> LoraAdapter:
    return LoraAdapter({NAME: LoraModule(NAME, torch.zeros(RANK, WIDTH), torch.zeros(WIDTH, RANK), 2.0)})


def leaves(base: LoadedBase) -> dict[str, SideFactors]:
    """As ``trainable`` makes them, which looks at values and so cannot run here."""
    sides = side_factors(adapter(), base)[NAME]
    a, b = (side.float().requires_grad_() for side in (sides.a, sides.b))
    return {NAME: SideFactors(a, b, sides.scale)}


def test_the_stand_in_refuses_to_mix(base: LoadedBase) -> None:
    with pytest.raises(RuntimeError, match="device"):
        base.model(input_ids=torch.tensor([[1, 2]]))


def test_the_base_says_where_it_is_and_what_it_computes_in(base: LoadedBase) -> None:
    assert base.device.type == "cuda"
    assert base.arithmetic == "torch.float32 on cuda"


def test_answers_are_read_with_an_adapter_attached(base: LoadedBase) -> None:
    with attached(base.model, side_factors(adapter(), base)):
        losses, text = answer_losses(base, ROWS), text_loss(base, [[1, 2, 3], [4, 5, 6]])
        read = mean_losses(base, ROWS)
    assert (losses.device, text.device) == (base.device, base.device)
    assert read.device.type == "cpu"


def test_choices_are_scored(base: LoadedBase) -> None:
    questions = [Question((5, 6, 7), grow([(8, 9), (8, 10), (11,)])), Question((5, 6), grow([(8, 9), (8, 10), (11,)]))]
    assert scores(base, questions).device == base.device
    assert choice_scores(base, questions).device.type == "cpu"


def test_a_step_of_training_and_what_is_kept_of_it(base: LoadedBase) -> None:
    """Without the way back, which torch does not go on a device that is not there."""
    factors = leaves(base)
    descent = Descent([Group(leaves_of(factors), 1e-3)], Pace(1, 4, 1.0))
    with attached(base.model, factors):
        loss = answer_losses(base, ROWS).mean() + 0.1 * text_loss(base, [[1, 2, 3]]).mean()
    assert loss.device == base.device
    for leaf in leaves_of(factors).values():
        leaf.grad = torch.ones_like(leaf)
    descent._optimizer.step()
    assert {tensor.device.type for tensor in descent.tensors().values()} == {"cpu"}
    module = snapshot(factors, adapter()).modules[NAME]
    assert {module.a.device.type, module.b.device.type} == {"cpu"}


def test_the_points_of_a_search(base: LoadedBase) -> None:
    drift: Any = SimpleNamespace(left=torch.zeros(WIDTH, 2), right=torch.zeros(2, WIDTH))
    side = SideBySide(adapter(), {NAME: drift}, base)
    side.move_to(Point(1.0, -0.5))
    with attached(base.model, side.factors):
        assert mean_losses(base, ROWS).shape == (2,)


def test_texts_pass_layer_by_layer(base: LoadedBase) -> None:
    """Up to the first module that looks at which tokens are padding, whose number is a value."""
    stream = Stream(base, [[5, 6, 7], [5, 6]])
    (batch,) = stream._batches
    assert {batch.hidden.device, batch.valid.device} == {base.device}
    assert stream._run(0, batch).device == base.device


def test_earlier_directions_with_their_gains(base: LoadedBase) -> None:
    direction = SimpleNamespace(left=torch.zeros(WIDTH, RANK), right=torch.zeros(RANK, WIDTH), rank=RANK)
    block = SimpleNamespace(directions={NAME: direction}, magnitudes={NAME: 2.0})
    learned: Any = SimpleNamespace(holding=lambda name: [block, block])
    sides = _Directions.of(learned, NAME, base).times(torch.ones(2, device=base.device))
    with attached(base.model, {NAME: sides}):
        assert answer_losses(base, ROWS).device == base.device


def test_text_is_drawn_on_the_cpu_and_read_on_the_gpu(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the cache of keys and values, whose first tensor is a constant on a device that is not there."""
    forward = base.model.forward
    monkeypatch.setattr(base.model, "forward", lambda input_ids, **_: forward(input_ids=input_ids, use_cache=False))
    text = sample(base, sequences=2, length=3, seed=1)
    assert (text.shape, text.device.type) == ((2, 3), "cpu")


@pytest.mark.parametrize("earlier", [[], [" up", " down"]], ids=["first task", "later task"])
def test_a_task_is_learned_by_choosing(base: LoadedBase, earlier: list[str]) -> None:
    examples = [Example(f"question {n}:", (" yes", " no")[n % 2]) for n in range(4)]
    loss = ChoiceLoss(base, examples, [" yes", " no"], earlier)
    assert loss([0, 2]).device == base.device
