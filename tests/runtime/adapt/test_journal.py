"""The records of unfinished work: told bit for bit to an equal run, and to nobody else."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from readapt_runtime.adapt.journal import SAVE_EVERY_S, Journal
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store, StoreFull

ITEM = "sha256:" + "7" * 64
SAME = {"threads": 2, "dtype": "float32"}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b.c": torch.tensor([0.1], dtype=torch.bfloat16)}


@dataclass(frozen=True)
class Seen:
    value: float
    maybe: float | None
    many: tuple[float, ...]


SEEN = TypeAdapter(Seen)
FOUND = Seen(0.1 + 0.2, None, (1e-310, math.pi, -0.0, 1e22))


def undoable() -> Seen:
    raise AssertionError("done again")


@dataclass
class Desk:
    """Opens the journal of one item, as runs after each other do."""

    store: Store
    said: io.StringIO

    def open(self, circumstances: dict[str, object] = SAME, clock: Callable[[], float] = lambda: 0.0) -> Journal:
        self.said.seek(0)
        self.said.truncate()
        return Journal(self.store, ITEM, circumstances, JsonLog(self.said, lambda: 0.0), clock)

    def warnings(self) -> list[str]:
        lines = [json.loads(line) for line in self.said.getvalue().splitlines()]
        return [line["why"] for line in lines if line["level"] == "warning"]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(Store(tmp_path), io.StringIO())


def test_a_recorded_step_is_not_done_again_and_comes_back_bit_for_bit(desk: Desk) -> None:
    assert desk.open().once("first", SEEN, lambda: FOUND) == FOUND
    later = desk.open()
    assert later.once("first", SEEN, undoable) == FOUND
    assert math.copysign(1, later.once("first", SEEN, undoable).many[2]) == -1
    assert later.once("second", SEEN, lambda: Seen(1.0, 2.0, ())).maybe == 2.0
    assert desk.open().once("first", SEEN, undoable) == FOUND


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_a_measurement_that_is_no_number_is_recorded_as_that(desk: Desk, value: float) -> None:
    desk.open().once("lost", SEEN, lambda: Seen(value, value, ()))
    found = desk.open().once("lost", SEEN, undoable)
    assert str(found.value) == str(found.maybe) == str(value)


def test_tensors_come_back_as_they_were_whatever_their_strides(desk: Desk) -> None:
    desk.open().save("state", {"step": 3}, TENSORS)
    document, tensors = loaded(desk.open())
    assert document == {"step": 3}
    assert tensors.keys() == TENSORS.keys()
    assert all(tensors[name].equal(tensor) for name, tensor in TENSORS.items())
    assert all(tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def loaded(journal: Journal) -> Any:
    return journal.load("state", lambda document, tensors: (document, tensors))


def test_records_made_under_other_circumstances_are_ignored_and_it_is_said(desk: Desk) -> None:
    journal = desk.open()
    journal.once("first", SEEN, lambda: FOUND)
    journal.save("state", {}, TENSORS)
    other = desk.open(SAME | {"threads": 8})
    assert other.once("first", SEEN, lambda: Seen(5.0, None, ())).value == 5.0
    assert loaded(other) is None
    assert len(desk.warnings()) == 2
    assert all("other threads" in why for why in desk.warnings())


def flip(content: bytes) -> bytes:
    at = len(content) - 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-5],
    "a flipped bit": flip,
    "empty": lambda _: b"",
    "zeros": lambda content: b"\0" * len(content),
    "not ours": lambda _: b"[1, 2]\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_record_is_ignored_and_it_is_said(desk: Desk, damage: Callable[[bytes], bytes]) -> None:
    journal = desk.open()
    journal.once("first", SEEN, lambda: FOUND)
    journal.save("state", {}, TENSORS)
    for path in (desk.store.root / "progress").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    later = desk.open()
    assert later.once("first", SEEN, lambda: Seen(5.0, None, ())).value == 5.0
    assert loaded(later) is None
    assert len(desk.warnings()) == 2


def test_a_state_that_does_not_fit_any_more_is_ignored_and_it_is_said(desk: Desk) -> None:
    desk.open().save("state", {"step": 3}, TENSORS)
    assert desk.open().load("state", lambda _, tensors: tensors["gone"]) is None
    assert desk.warnings() == ["'gone'"]


def test_a_full_disk_is_said_leaves_nothing_half_and_a_later_run_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = desk.open()
    journal.once("first", SEEN, lambda: FOUND)
    journal.save("state", {"step": 1}, TENSORS)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreFull, match="free space"):
            journal.once("second", SEEN, lambda: FOUND)
        with pytest.raises(StoreFull, match="free space"):
            journal.save("state", {"step": 2}, TENSORS)
    assert list((desk.store.root / "tmp").iterdir()) == []
    later = desk.open()
    assert later.once("first", SEEN, undoable) == FOUND
    assert loaded(later)[0] == {"step": 1}


def test_dropped_progress_is_gone_and_that_of_other_items_stays(desk: Desk) -> None:
    journal = desk.open()
    journal.once("first", SEEN, lambda: FOUND)
    journal.save("state", {}, TENSORS)
    other = "sha256:" + "8" * 64
    desk.store.write_progress(other, "json", b"theirs")
    desk.store.drop_progress(ITEM)
    assert [path.read_bytes() for path in (desk.store.root / "progress").iterdir()] == [b"theirs"]


def test_seconds_of_earlier_runs_add_up(desk: Desk) -> None:
    for before, took in ((0.0, 5.0), (5.0, 7.0), (12.0, 1.0)):
        moments = iter([100.0, 100.0 + took])
        journal = desk.open(clock=lambda moments=moments: next(moments))  # type: ignore[misc]
        assert journal.earlier_seconds == before
        journal.once(f"after {before}", SEEN, lambda: FOUND)


def test_a_state_is_due_when_a_kill_would_cost_half_a_minute(desk: Desk) -> None:
    now = 0.0
    journal = desk.open(clock=lambda: now)
    now = SAVE_EVERY_S - 1
    assert not journal.due()
    now = SAVE_EVERY_S
    assert journal.due()
    journal.save("state", {}, TENSORS)
    assert not journal.due()
