"""Which desired set counts: the highest sequence for this pod, whole, from disk or pushed."""

from __future__ import annotations

from pathlib import Path

import pytest

from readapt_api.serving import SHARD_FILE, AdapterState, DesiredAdapter, DesiredSet, IncompleteSet
from readapt_runtime.server.adapters import Generation
from readapt_runtime.server.desired_set import DesiredSetKeeper, ShardFolder, WrongPod, read_shards
from readapt_runtime.server.readiness import Readiness
from readapt_testing.serving import write_shards

BASE = f"sha256:{'b' * 64}"
OTHER = f"sha256:{'c' * 64}"


def _set(sequence: int, names: int = 1, revision: str = "r1", base: str = BASE) -> DesiredSet:
    adapters = tuple(DesiredAdapter(name=f"a{i}", digest=OTHER) for i in range(names))
    return DesiredSet(sequence=sequence, revision=revision, base=base, adapters=adapters)


@pytest.fixture
def taken() -> list[int]:
    return []


@pytest.fixture
def keeper(taken: list[int]) -> DesiredSetKeeper:
    return DesiredSetKeeper("r1", BASE, lambda desired: taken.append(desired.sequence))


def test_only_higher_sequences_are_taken(keeper: DesiredSetKeeper, taken: list[int]) -> None:
    answers = [keeper.offer(_set(n)) for n in (3, 2, 3, 7, 5)]
    assert answers == [True, False, False, True, False]
    assert taken == [3, 7]


@pytest.mark.parametrize("wrong", [_set(9, revision="r2"), _set(9, base=OTHER)], ids=["revision", "base"])
def test_a_set_for_another_pod_is_refused(keeper: DesiredSetKeeper, taken: list[int], wrong: DesiredSet) -> None:
    with pytest.raises(WrongPod):
        keeper.offer(wrong)
    assert taken == []


def test_shards_on_disk_are_taken_when_whole_and_newer(
    tmp_path: Path, keeper: DesiredSetKeeper, taken: list[int]
) -> None:
    shards = ShardFolder(tmp_path, keeper)
    shards.poll()
    assert taken == []
    write_shards(tmp_path, _set(1, names=2001))
    shards.poll()
    shards.poll()
    assert taken == [1]
    kept = (tmp_path / "1" / SHARD_FILE).read_bytes()
    write_shards(tmp_path, _set(2, names=2002))
    (tmp_path / "1" / SHARD_FILE).write_bytes(kept)  # the second volume is behind
    shards.poll()
    assert taken == [1]
    write_shards(tmp_path, _set(2, names=2002))
    shards.poll()
    assert taken == [1, 2]
    keeper.offer(_set(8))
    write_shards(tmp_path, _set(5))
    shards.poll()
    assert taken == [1, 2, 8], "what was pushed is newer than what is on disk"


def test_a_swapped_link_is_noticed(tmp_path: Path, keeper: DesiredSetKeeper, taken: list[int]) -> None:
    """A ConfigMap volume keeps its file names and swaps a link above them."""
    for sequence in (1, 2):
        write_shards(tmp_path / f"v{sequence}", _set(sequence))
    (tmp_path / "live").mkdir()
    link = tmp_path / "live" / "0"
    shards = ShardFolder(tmp_path / "live", keeper)
    for sequence in (1, 2):
        fresh = tmp_path / "fresh"
        fresh.symlink_to(tmp_path / f"v{sequence}" / "0")
        fresh.replace(link)
        shards.poll()
    assert taken == [1, 2]


@pytest.mark.parametrize("content", [b"", b"{", b'{"sequence": -1}', b"\xff"], ids=repr)
def test_a_shard_that_cannot_be_read_leaves_the_old_set(
    tmp_path: Path, keeper: DesiredSetKeeper, taken: list[int], content: bytes
) -> None:
    shards = ShardFolder(tmp_path, keeper)
    write_shards(tmp_path, _set(1))
    shards.poll()
    (tmp_path / "0" / SHARD_FILE).write_bytes(content)
    with pytest.raises(IncompleteSet):
        read_shards(tmp_path)
    shards.poll()
    assert taken == [1]


def test_readiness_waits_for_the_first_set_and_then_latches() -> None:
    readiness = Readiness()
    assert not readiness.ready
    first = [Generation("a", OTHER, 1), Generation("b", OTHER, 2), Generation("c", OTHER, 3)]
    readiness.await_first(first)
    first[0].state = AdapterState.FAILED
    first[1].state = AdapterState.REGISTERED
    assert not readiness.ready
    assert "c" in readiness.explain()
    first[2].retired = True
    assert readiness.ready


def test_once_ready_later_changes_do_not_unready_a_pod_and_only_its_end_does() -> None:
    readiness = Readiness()
    first = Generation("a", OTHER, 1, AdapterState.REGISTERED)
    readiness.await_first([first])
    seen = [readiness.ready]
    readiness.await_first([Generation("d", OTHER, 4)])
    first.state = AdapterState.PENDING
    seen.append(readiness.ready)
    readiness.draining = True  # the Service has moved before a drain
    seen.append(readiness.ready)
    readiness.terminating = True
    seen.append(readiness.ready)
    assert seen == [True, True, True, False]


def test_a_pod_without_adapters_is_ready_once_it_has_read_its_set() -> None:
    readiness = Readiness()
    readiness.await_first([])
    assert readiness.ready
