"""The whole engine with the Triton kernels, in the interpreter: PEFT's tokens, from replayed steps too.

Steps are recorded on a tape of launches (``launch_tape``): what a replay computes it computes without Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from readapt_runtime.engine.engine import Engine
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import PageOrder
from readapt_runtime.model.exchange import Alone, Exchange
from readapt_runtime.model.ops import TorchOps
from readapt_runtime.model.static_decoder import StaticDecoder, StepOptions
from readapt_testing.launch_tape import LaunchTape
from readapt_testing.tiny_engine import Answer, Tiny, ask, run_to_idle
from readapt_testing.triton_modes import Launch, recorded

NAMES = (None, "r4", "r64", "r3")


@dataclass
class Static:
    """An engine over a static decoder that records on ``tape``."""

    tiny: Tiny
    tape: LaunchTape
    engine: Engine

    @classmethod
    def of(
        cls,
        tiny: Tiny,
        limits: EngineLimits,
        num_pages: int = 120,
        max_model_len: int = 64,
        exchange: Exchange | None = None,
        **options: bool,
    ) -> Static:
        tape = LaunchTape()
        ops = TorchOps(tiny.config.rms_norm_eps)
        decoder = partial(StaticDecoder, options=StepOptions(**options), exchange=exchange)
        order = PageOrder.PAGE_MAJOR
        engine = tiny.engine(num_pages, limits, order, lambda: 0.0, max_model_len, decoder, None, ops, tape)
        return cls(tiny, tape, engine)

    def answer(self, names: Sequence[str | None], lengths: Sequence[int], counts: Sequence[int]) -> None:
        """Asks all at once, for ``counts`` tokens each, and compares with PEFT."""
        salt = self.engine.forward_passes
        prompts = [[(7 * i + 3 * j + salt) % 250 for j in range(length)] for i, length in enumerate(lengths)]
        asked = [
            (name, prompt, count, ask(self.engine, prompt, self.tiny.variant(name) if name else None, count)[1])
            for name, prompt, count in zip(names, prompts, counts, strict=True)
        ]
        run_to_idle(self.engine)
        for name, prompt, count, answer in asked:
            self.tiny.oracle.assert_greedy(self.tiny.folder(name), prompt, answer.tokens, count)
        assert self.tape.uploads == self.engine.forward_passes


@pytest.mark.parametrize(
    "max_batch_tokens",
    [pytest.param(64, marks=pytest.mark.fault, id="whole prompts"), pytest.param(20, id="chunked prompts")],
)
def test_a_mixed_batch_is_answered_as_by_peft(tiny: Tiny, max_batch_tokens: int) -> None:
    static = Static.of(tiny, EngineLimits(max_batch_tokens, max_running=8))
    static.answer(NAMES, (5, 17, 29, 41), [4] * 4)


def test_a_step_recorded_with_one_mix_of_adapters_serves_every_other(tiny: Tiny) -> None:
    static = Static.of(tiny, EngineLimits(max_batch_tokens=32, max_running=4))
    static.answer(("r4", "r64", None), (5, 3, 4), [2] * 3)  # three rows in a bucket of four
    static.answer(
        (None, "r3", "r8", "r4"), (9, 2, 6, 3), [3, 2, 3, 3]
    )  # one ends before the others, in the same bucket
    assert (static.tape.recorded, static.tape.replayed) == (1, 3)
    assert static.tape.forks == 3 * 4  # one for each linear of the recorded step, none where there are prompts

    static.answer((None, None, None), (5, 8, 4), [2] * 3)
    assert (static.tape.recorded, static.tape.replayed) == (2, 4)


def test_preempted_sequences_are_replayed_on_their_new_pages(tiny: Tiny) -> None:
    static = Static.of(tiny, EngineLimits(max_batch_tokens=32, max_running=4), num_pages=5)
    static.answer((None, "r3"), (14, 15), [5] * 2)

    assert static.engine.scheduler.preemptions


def test_steps_recorded_at_start_draw_what_is_drawn_on_a_cpu(tiny: Tiny) -> None:
    static = Static.of(tiny, EngineLimits(max_batch_tokens=32, max_running=3), record_at_start=True)
    ours, theirs = _draw(static.engine, tiny), _draw(tiny.engine(), tiny)
    assert [answer.tokens for answer in ours] == [answer.tokens for answer in theirs]
    assert len({tuple(answer.tokens) for answer in ours}) == 3
    assert static.tape.recorded == 2 * len((1, 2, 3))


@pytest.mark.parametrize("exchange", [None, Alone()], ids=["alone", "with an exchange"])
def test_every_kernel_is_met_before_the_first_request(tiny: Tiny, exchange: Exchange | None) -> None:
    """A launch is compiled anew for other constants, types, or numbers that are multiples of 16; none runs here."""
    with recorded() as before:
        limits = EngineLimits(max_batch_tokens=320, max_running=4, chunk_tokens=300)
        static = Static.of(tiny, limits, max_model_len=320, exchange=exchange, record_at_start=True)
    served: list[Launch] = []
    for name, length in ((None, 5), ("r4", 20), (None, 310), ("r3", 270), ("r4", 300), ("r8", 319), ("r64", 257)):
        with recorded() as seen:
            ask(static.engine, [7] * length, tiny.variant(name) if name else None, 1)
            run_to_idle(static.engine)
        served += seen

    assert {launch.kernel for launch in served} >= {"prefill_kernel", "plan_prefill_kernel", "shrink_kernel"}
    assert len({launch.constants["BLOCK_C"] for launch in served if launch.kernel == "shrink_kernel"}) == 3
    assert {repr(launch) for launch in served} <= {repr(launch) for launch in before}
    assert static.tape.recorded == (2 * len((1, 2, 4)) if exchange is None else 0)


def _draw(engine: Engine, tiny: Tiny) -> list[Answer]:
    sampled = ((None, 1.5, 1.0), ("r8", 0.0, 1.0), ("r8", 2.0, 0.9))
    answers = [
        ask(engine, [9, 8, 7], tiny.variant(name) if name else None, 3, temperature=heat, top_p=top_p, seed=5)[1]
        for name, heat, top_p in sampled
    ]
    run_to_idle(engine)
    return answers
