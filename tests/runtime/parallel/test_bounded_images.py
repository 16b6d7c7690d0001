"""More adapters than the host has room for: every rank holds as few images as the first, and all answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from readapt_api.contract import Digest
from readapt_runtime.engine.core import Variant
from readapt_runtime.engine.limits import EngineLimits
from readapt_runtime.lora_format import AdapterReader
from readapt_runtime.server.host_images import HostedSource, HostImages
from readapt_runtime.server.registration import Registered
from readapt_testing.tiny_engine import Tiny, ask, run_to_idle
from readapt_testing.tiny_ranks import TinyRanks, tiny_ranks

ROUNDS = 3
REGISTERED = 150


@dataclass
class Folders:
    """A source whose digests are names of adapters; counts how often it is read."""

    tiny: Tiny
    ranks: TinyRanks
    reads: int = 0

    def load(self, digest: Digest) -> Registered:
        self.reads += 1
        reader = AdapterReader(self.tiny.config.module_shapes)
        return Registered(self.ranks.ranks.make_image(reader.read(self.tiny.adapters[digest.partition("#")[0]])), None)


@pytest.fixture(scope="module")
def ranks(tiny: Tiny) -> Iterator[TinyRanks]:
    with tiny_ranks(tiny.base, 2, EngineLimits(max_batch_tokens=64, max_running=4)) as several:
        yield several


def test_an_image_that_was_let_go_comes_back_to_all_ranks_and_answers_as_peft_does(
    tiny: Tiny, ranks: TinyRanks
) -> None:
    folders, names = Folders(tiny, ranks), ("r3", "r4", "r8")
    images = HostImages(1, pinned=False)  # bytes: none stays
    hosted = HostedSource(folders, images)
    variants = {name: Variant(name, f"sha256:{'0' * 64}", hosted.load(name).image) for name in names}
    for _ in range(ROUNDS):
        for name, variant in variants.items():
            _, answer = ask(ranks.engine, [9, 8, 7], variant, max_tokens=6)
            run_to_idle(ranks.engine)
            tiny.oracle.assert_greedy(tiny.adapters[name], [9, 8, 7], answer.tokens, 6)
        ranks.engine.memory.clear()
    assert folders.reads == len(names) * (1 + ROUNDS)


def test_workers_hold_no_more_images_than_the_first_rank(tiny: Tiny, ranks: TinyRanks) -> None:
    """Registered while no step runs, as at the start of a pod."""
    (process,) = (worker.process for worker in ranks.crew._workers)
    hosted = HostedSource(Folders(tiny, ranks), HostImages(1 << 20, pinned=False))
    share = hosted.load("r64#first").image.read().here.nbytes
    before = psutil.Process(process.pid).memory_full_info().uss
    kept = [hosted.load(f"r64#{number}").image for number in range(REGISTERED)]
    grown = psutil.Process(process.pid).memory_full_info().uss - before
    assert grown < 20 * share < len(kept) * share / 4, "one image, and what an allocator does not give back"
