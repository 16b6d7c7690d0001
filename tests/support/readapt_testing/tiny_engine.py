"""Engines over the tiny Llama and its adapters, driven step by step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

import torch

from readapt_api.errors import ReadaptError
from readapt_runtime.engine.core import Event, Request, SamplingParams, Token, Variant
from readapt_runtime.engine.engine import Engine, Model
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.engine.pool import PageLayout, PageOrder, PagePool
from readapt_runtime.lora_format import read_adapter
from readapt_runtime.model.accelerator import Accelerator
from readapt_runtime.model.adapter_image import pack_adapter
from readapt_runtime.model.backends import Bounds, choose_ops
from readapt_runtime.model.config import DecoderConfig, read_config
from readapt_runtime.model.decoders import choose_decoder
from readapt_runtime.model.ops import Ops
from readapt_runtime.model.weights import load_weights
from readapt_testing.tiny_llama import Oracle, write_adapter_folder, write_base

CPU = torch.device("cpu")
EOS = 256


@dataclass(frozen=True)
class Tiny:
    """Folders of the base and of adapters by name; ``None`` is the base. Computed in ``dtype``."""

    base: Path
    adapters: dict[str, Path]
    dtype: torch.dtype = torch.float32

    @property
    def oracle(self) -> Oracle:
        return Oracle(self.base)

    @property
    def config(self) -> DecoderConfig:
        return read_config(self.base)

    def folder(self, name: str | None) -> Path | None:
        """Of an adapter; None is the base."""
        return None if name is None else self.adapters[name]

    def variant(self, name: str) -> Variant:
        adapter = read_adapter(self.adapters[name], self.config.module_shapes)
        image = pack_adapter(adapter.modules, self.config, PageLayout.of(self.config).elements, self.dtype)
        return Variant(name, f"sha256:{'0' * 64}", image)

    def engine(
        self,
        num_pages: int = 200,
        limits: EngineLimits | None = None,
        order: PageOrder | None = None,
        clock: Callable[[], float] = lambda: 0.0,
        max_model_len: int = 512,
        decoder: Callable[..., Model] = choose_decoder,
        executor: Executor | None = None,
        ops: Ops | None = None,
        accelerator: Accelerator | None = None,
    ) -> Engine:
        layout = PageLayout.of(self.config)
        pool = PagePool(layout, num_pages * layout.page_bytes(self.dtype), self.dtype, CPU, order, accelerator)
        pool.pages.fill_(float("nan"))  # whatever is read before it is written shows
        ops = ops or choose_ops(self.config, self.dtype, CPU)
        weights = load_weights(self.base, self.config, self.dtype, CPU, ops)
        limits = limits or EngineLimits()
        bounds = Bounds(max_model_len, limits.max_batch_tokens, limits.max_running)
        return Engine(decoder(self.config, weights, ops, pool, bounds), pool, limits, clock, executor)


class Later(Executor):
    """Runs what it was given when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[object], Callable[[], object]]] = []

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        future: Future[object] = Future()
        self.waiting.append((future, fn))
        return future

    def run_one(self, index: int = 0) -> None:
        future, fn = self.waiting.pop(index % len(self.waiting))
        try:
            result = fn()
        except ReadaptError as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def build_tiny(root: Path) -> Tiny:
    """Writes the base and adapters of ranks 3 (some modules at 5), 4, 8 and 64 (rank-stabilised)."""
    torch.set_num_threads(1)
    base = write_base(root / "base")
    some = ("k_proj", "o_proj", "down_proj")
    adapters = {
        "r4": write_adapter_folder(root / "r4", base, 4, 1, ("q_proj", "v_proj")),
        "r8": write_adapter_folder(root / "r8", base, 8, 2),
        "r64": write_adapter_folder(root / "r64", base, 64, 3, use_rslora=True),
        "r3": write_adapter_folder(root / "r3", base, 3, 4, some, rank_pattern={"o_proj": 5}),
    }
    return Tiny(base, adapters)


@dataclass
class Answer:
    """Collects what a request is answered."""

    events: list[Event] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [e.token_id for e in self.events if isinstance(e, Token)]

    @property
    def last(self) -> Event:
        return self.events[-1]

    @property
    def done(self) -> bool:
        return bool(self.events) and not (isinstance(self.last, Token) and self.last.finish is None)


def ask(
    engine: Engine, prompt: list[int], variant: Variant | None = None, max_tokens: int = 16, **sampling: object
) -> tuple[Request, Answer]:
    """Adds a greedy request unless ``sampling`` says otherwise."""
    answer = Answer()
    params = SamplingParams(max_tokens=max_tokens, stop_ids=frozenset({EOS}), **sampling)  # type: ignore[arg-type]
    request = Request(tuple(prompt), params, answer.events.append, variant)
    engine.add(request)
    return request, answer


def run_to_idle(engine: Engine) -> None:
    """Steps until there is no work, with the conservation law after every step."""
    while engine.has_work:
        engine.step()
        engine.memory.check()
