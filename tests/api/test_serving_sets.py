"""Sets survive being cut into ConfigMap shards, and never come back as something else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from readapt_api.contract import SERVED_NAME_PATTERN
from readapt_api.serving import (
    ADAPTERS_PER_SHARD,
    DesiredAdapter,
    DesiredSet,
    IncompleteSet,
    SetShard,
    join_set,
    split_set,
)

DIGESTS = st.integers(0, (1 << 256) - 1).map(lambda n: f"sha256:{n:064x}")
NAMES = st.from_regex(SERVED_NAME_PATTERN, fullmatch=True).filter(lambda name: len(name) <= 63)
SETS = st.builds(
    DesiredSet,
    sequence=st.integers(0, 1 << 50),
    revision=st.just("0123456789"),
    base=DIGESTS,
    adapters=st.lists(
        st.builds(DesiredAdapter, name=NAMES, digest=DIGESTS), max_size=8, unique_by=lambda a: a.name
    ).map(tuple),
)


def test_what_a_set_says_by_default_is_not_part_of_its_digest() -> None:
    """Pods and operators of before know sets without these fields."""
    plain = DesiredAdapter(name="a", digest=f"sha256:{1:064x}")
    assert plain.to_wire() == {"name": "a", "digest": f"sha256:{1:064x}"}
    urgent = plain.model_copy(update={"priority": 5, "preload": True})
    assert urgent.to_wire() == {**plain.to_wire(), "priority": 5, "preload": True}


def big_set(count: int) -> DesiredSet:
    adapters = tuple(DesiredAdapter(name=f"a{i:05}", digest=f"sha256:{i:064x}") for i in range(count))
    return DesiredSet(sequence=7, revision="r", base=f"sha256:{'f' * 64}", adapters=adapters)


@given(SETS)
def test_split_and_join_give_the_same_set(desired: DesiredSet) -> None:
    shards = [SetShard.model_validate_json(shard.model_dump_json(by_alias=True)) for shard in split_set(desired)]

    joined = join_set(reversed(shards))

    assert joined.digest == desired.digest
    assert (joined.sequence, joined.revision, joined.base) == (desired.sequence, desired.revision, desired.base)
    assert set(joined.adapters) == set(desired.adapters)


@given(SETS, st.randoms())
def test_digest_ignores_order_and_sequence(desired: DesiredSet, draw: object) -> None:
    shuffled = list(desired.adapters)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]

    other = desired.model_copy(update={"adapters": tuple(shuffled), "sequence": desired.sequence + 1})

    assert other.digest == desired.digest


@given(SETS, SETS)
def test_different_sets_have_different_digests(one: DesiredSet, two: DesiredSet) -> None:
    same = (one.base, one.revision, set(one.adapters)) == (two.base, two.revision, set(two.adapters))

    assert (one.digest == two.digest) == same


@pytest.mark.parametrize(("adapters", "shards"), [(0, 1), (1, 1), (ADAPTERS_PER_SHARD, 1), (ADAPTERS_PER_SHARD + 1, 2)])
def test_number_of_shards(adapters: int, shards: int) -> None:
    split = split_set(big_set(adapters))

    assert [s.shard for s in split] == list(range(shards))
    assert {s.shards for s in split} == {shards}
    assert join_set(split).adapters == big_set(adapters).adapters


def test_missing_shard_is_incomplete() -> None:
    first, second = split_set(big_set(ADAPTERS_PER_SHARD + 1))

    for shards in ([], [first], [second]):
        with pytest.raises(IncompleteSet):
            join_set(shards)


def test_shards_of_two_sequences_do_not_join() -> None:
    """ConfigMap volumes change one by one: in between a pod sees the new shard 0 beside the old shard 1."""
    old = split_set(big_set(ADAPTERS_PER_SHARD + 1))
    new = split_set(big_set(ADAPTERS_PER_SHARD + 2).model_copy(update={"sequence": 8}))

    with pytest.raises(IncompleteSet):
        join_set([new[0], old[1]])
    with pytest.raises(IncompleteSet):
        join_set([old[0], new[1]])
    assert join_set(new).sequence == 8


def test_edited_shard_does_not_add_up() -> None:
    (shard,) = split_set(big_set(3))

    with pytest.raises(IncompleteSet, match="do not add up"):
        join_set([shard.model_copy(update={"adapters": shard.adapters[:2]})])


def test_leftover_shard_beyond_the_count_is_ignored() -> None:
    """A set that became smaller leaves its old last shard behind until the volume is gone."""
    old = split_set(big_set(ADAPTERS_PER_SHARD + 1))
    new = split_set(big_set(2).model_copy(update={"sequence": 8}))

    assert join_set([new[0], old[1]]).adapters == big_set(2).adapters


def test_sets_are_values() -> None:
    with pytest.raises(ValueError, match="frozen"):
        big_set(1).sequence = 3
