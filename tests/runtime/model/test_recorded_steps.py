"""What recorded steps rest on: few shapes, fields that do not overlap, launches in order, nothing from the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import pytest
import torch

from readapt_kernels.lora.shapes import Limits, LinearShape, LoraShapes
from readapt_kernels.lora.tiles import TileTable
from readapt_kernels.lora.work import WorkLayout
from readapt_runtime.engine.draws import Draws
from readapt_runtime.engine.sampler import pick
from readapt_runtime.model.accelerator import InOrder
from readapt_runtime.model.config import Linear
from readapt_runtime.model.ops import TorchOps
from readapt_runtime.model.replay import Buckets, Replays, StepShape
from readapt_runtime.model.step_buffer import StepLimits, carve, words_through
from readapt_runtime.model.triton_lora import LoraLaunches
from readapt_testing.launch_tape import HostAccess, LaunchTape, NoHostAccess

LAYOUT = WorkLayout(LoraShapes((LinearShape(64, (64,)),), 1, 256), Limits(8, 8, 64, 16), TileTable())


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, (1,)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (20, (1, 2, 4, 8, 16, 20)), (32, (1, 2, 4, 8, 16, 24, 32))],
)
def test_steps_are_padded_to_the_next_bucket(most: int, sizes: tuple[int, ...]) -> None:
    buckets = Buckets(most)
    assert buckets.sizes == sizes
    assert [buckets.pad(n) for n in range(1, most + 1)] == [min(s for s in sizes if s >= n) for n in range(1, most + 1)]
    assert buckets.pad(most + 1) == most + 1
    assert not buckets.holds(StepShape(most + 1, True, False, None))
    assert not buckets.holds(StepShape(1, True, True, None))


def test_the_tiles_of_a_bucket_do_not_depend_on_ranks() -> None:
    for size in Buckets(TileTable().small_tokens).sizes:
        assert LAYOUT.small_tiles(size) == LAYOUT.tiles_of(size, [4096])


def test_a_bucket_has_two_recorded_steps() -> None:
    tape = LaunchTape()
    replays = Replays(lambda shape: torch.zeros(shape.tokens) + 1, tape.record)
    for size in (8, 2, 8, 2, 8):
        for tiles in (None, LAYOUT.small_tiles(size)):
            replays.run(StepShape(size, True, False, tiles))
    assert (tape.recorded, tape.replayed) == (4, 10)


def test_fields_lie_apart_aligned_and_in_the_order_of_how_often_they_change() -> None:
    limits = StepLimits(max_tokens=7, max_rows=3, max_pages=5, work_words=11)
    words = torch.zeros(limits.num_words, dtype=torch.int32)
    found = carve(words, limits)
    sequences = [part for s in (found.decode, found.prompts) for part in _parts(s)]
    parts = [getattr(found, f.name) for f in fields(found) if f.name not in {"decode", "prompts"}] + sequences

    for number, part in enumerate(parts, start=1):
        part.view(torch.int32).fill_(number)
        assert part.storage_offset() % 4 == 0
    assert [int((words == n).sum()) for n in range(1, len(parts) + 1)] == [part.numel() for part in parts]
    tables = found.decode.page_table, found.prompts.page_table, found.work
    ends = [words_through(table, table.numel()) for table in tables]
    assert ends == sorted(ends)
    assert ends[-1] == max(words_through(part, part.numel()) for part in parts)


def _parts(sequences: object) -> list[torch.Tensor]:
    return [getattr(sequences, f.name) for f in fields(sequences)]  # type: ignore[arg-type]


@dataclass
class Order(InOrder):
    """Writes down what is launched, and where."""

    seen: list[str] = field(default_factory=list)
    where: str = ""

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.where = "beside "
        yield
        self.where = ""

    def join(self) -> None:
        self.seen.append("join")

    def shrink(self, *args: object, **kwargs: object) -> None:
        self.seen.append(f"{self.where}shrink")

    def expand_(self, *args: object, **kwargs: object) -> None:
        self.seen.append(f"{self.where}expand")


@pytest.mark.parametrize(
    ("overlap", "has_lora", "seen"),
    [
        (True, True, ["beside shrink", "product", "join", "expand"]),
        (False, True, ["product", "shrink", "expand"]),
        (True, False, ["product"]),
    ],
    ids=["overlapping", "in order", "base rows"],
)
def test_shrink_is_beside_the_product_and_before_expand(overlap: bool, has_lora: bool, seen: list[str]) -> None:
    order, x = Order(), torch.empty(1, 64)
    tiles = LAYOUT.small_tiles(1) if has_lora else None
    lora = LoraLaunches(order, {Linear.O: 0}, tiles, order if overlap else None)  # type: ignore[arg-type]
    lora.begin(0, Linear.O, x)
    order.seen.append("product")
    lora.run(0, Linear.O, x, x)
    assert order.seen == seen


def test_tokens_are_picked_without_a_look_at_the_host() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    rows, ones = torch.tensor([0, 2], dtype=torch.int32), torch.ones(2)
    draws, ops = Draws(1, rows, ones, ones / 2, ones / 3), TorchOps(1e-6)
    with NoHostAccess():
        pick(logits, *ops.greedy(logits), draws, ops.draw)


def test_a_tape_repeats_launches_on_the_same_memory_and_not_their_python() -> None:
    source, added = torch.zeros(3), [1]
    replay = LaunchTape().record(lambda: torch.stack((source * 2 + added[0], source)).sum(dim=0).clone())
    source.fill_(5)
    added[0] = 100
    assert replay().tolist() == [16, 16, 16]


def test_a_tape_refuses_what_a_graph_cannot_hold() -> None:
    with pytest.raises(HostAccess):
        LaunchTape().record(lambda: torch.zeros(2) + torch.tensor([1, 2]))
    with pytest.raises(HostAccess):
        LaunchTape().record(lambda: torch.zeros(2) + torch.ones(1).item())
