"""Several processes compute what one computes, and what PEFT computes: logits, and so tokens.

By the kernels for CPUs, and by Triton's in its interpreter, as ranks on GPUs do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import PageOrder
from readapt_testing.tiny_engine import ask, run_to_idle
from readapt_testing.tiny_families import FAMILIES, Recorder, Reference, write_family, write_lora
from readapt_testing.tiny_ranks import TinyRanks, tiny_ranks

Answers = dict[tuple[int, ...], tuple[list[int], torch.Tensor]]
NO_DIVISOR = 263
"""Rows of a vocabulary that no number of ranks divides."""
LIMITS = EngineLimits(max_batch_tokens=24, max_running=8)
"""Prompts are computed in pieces, beside sequences that decode."""
ROUND_OFF = {"rtol": 2e-4, "atol": 2e-4}
ADAPTERS: dict[str, dict[str, Any]] = {
    "r4": {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "r8": {"r": 8, "rank_pattern": {"o_proj": 5, "up_proj": 3}},
    "r64": {"r": 64, "use_rslora": True, "lora_alpha": 3},
}
ATTENTION = {"kv_write_kernel", "plan_prefill_kernel", "prefill_kernel", "plan_decode_kernel", "decode_kernel"}
LORA = {"shrink_kernel", "expand_kernel"}


@dataclass(frozen=True)
class Case:
    """A base on some ranks, and how much is asked: Triton's interpreter is slow."""

    options: Mapping[str, Any]
    world: int
    order: PageOrder = PageOrder.LAYER_MAJOR
    prompts: int = 8
    tokens: int = 6
    """Of each answer."""
    rounds: int = 3
    """How often places in the pool are used again."""

    @property
    def asked(self) -> dict[tuple[int, ...], str | None]:
        """Short and long ones, of the base and of every adapter."""
        names = ([None, *ADAPTERS] * 2)[: self.prompts]
        return {tuple((7 * i + 3 * j) % 250 for j in range(3 + 6 * i)): name for i, name in enumerate(names)}


CASES = {
    "tied, two kv heads on 2": Case(FAMILIES["llama"], 2),
    "untied, biased, vocabulary padded, on 4": Case(
        {**FAMILIES["llama untied, biased, llama3"], "vocab_size": NO_DIVISOR}, 4
    ),
    "tied, two kv heads copied to 4, vocabulary padded": Case({**FAMILIES["qwen2"], "vocab_size": NO_DIVISOR}, 4),
    "head norms, one kv head copied to 2": Case(FAMILIES["qwen3 untied, biased, yarn"], 2),
    "six heads on 2": Case(FAMILIES["qwen2 untied, yarn"], 2),
    "Triton's kernels, head norms, one kv head copied to 2": Case(
        {**FAMILIES["qwen3 untied, biased, yarn"], "vocab_size": NO_DIVISOR, "num_hidden_layers": 2},
        2,
        PageOrder.PAGE_MAJOR,
        prompts=5,
        tokens=3,
        rounds=1,
    ),
}


@dataclass(frozen=True)
class Pod:
    """The ranks of a case, and the folder that their base and adapters are in."""

    case: Case
    several: TinyRanks
    root: Path

    def answers(self, ranks: TinyRanks) -> Answers:
        """Of these ranks, or of others over the same folders."""
        engine, case = ranks.engine, self.case
        variants = {None: None, **{name: ranks.variant(self.root / name) for name in ADAPTERS}}
        recorder = Recorder(engine._model)
        engine._model = recorder
        asked = {p: ask(engine, list(p), variants[name], case.tokens)[1] for p, name in case.asked.items()}
        run_to_idle(engine)
        engine._model = recorder.model
        return {p: (answer.tokens, torch.stack(recorder.logits[p])) for p, answer in asked.items()}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def pod(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """Adapters from rank 64 on are fully sharded."""
    case: Case = request.param
    root = tmp_path_factory.mktemp("family")
    base = write_family(root / "base", case.options)
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        write_lora(root / name, base, seed, **settings)
    with tiny_ranks(base, case.world, LIMITS, full_shard_rank=64, order=case.order) as ranks:
        yield Pod(case, ranks, root)


def test_logits_and_greedy_tokens_are_those_of_one_process_and_of_peft(pod: Pod) -> None:
    """The one process computes with the kernels for CPUs."""
    found = pod.answers(pod.several)
    with tiny_ranks(pod.several.base, 1, LIMITS) as one:
        expected = pod.answers(one)
    judges = {name: Reference(pod.several.base, pod.root / name if name else None) for name in (None, *ADAPTERS)}
    for prompt, name in pod.case.asked.items():
        tokens, logits = found[prompt]
        assert tokens == expected[prompt][0]
        torch.testing.assert_close(logits, expected[prompt][1], **ROUND_OFF)
        torch.testing.assert_close(logits, judges[name].logits(prompt, tokens), **ROUND_OFF)


def test_a_place_in_the_pool_is_used_again_and_again(pod: Pod) -> None:
    """Adapters and KV take each other's pages; what workers have in them is what rank 0 has there."""
    engine = pod.several.engine
    engine.memory.clear()  # as below: a cached beginning is another shape of step
    first = pod.answers(pod.several)
    for _ in range(pod.case.rounds):
        engine.memory.clear()
        spare = engine.pool.allocate("kv", 7)  # type: ignore[arg-type]
        again = pod.answers(pod.several)
        engine.pool.release(spare)
        for prompt, (tokens, logits) in first.items():
            assert again[prompt][0] == tokens
            torch.testing.assert_close(again[prompt][1], logits, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "lora"), [(None, set()), ("r8", LORA), ("r64", set())], ids=["base", "r8", "r64"])
def test_whose_kernels_compute(pod: Pod, monkeypatch: pytest.MonkeyPatch, name: str | None, lora: set[str]) -> None:
    """As seen on rank 0; the ranks compute fully sharded adapters together, by plain products."""
    launched: set[str] = set()
    run = InterpretedFunction.run

    def told(kernel: Any, *args: Any, **kwargs: Any) -> None:
        launched.add(kernel.fn.__name__)
        run(kernel, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", told)
    ask(pod.several.engine, [1, 2, 3], pod.several.variant(pod.root / name) if name else None, 2)
    run_to_idle(pod.several.engine)
    assert launched == (ATTENTION | lora if pod.case.order is PageOrder.PAGE_MAJOR else set())
