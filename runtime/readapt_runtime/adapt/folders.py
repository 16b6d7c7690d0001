"""``readapt adapt`` on directories: what the Job does with artifacts, without a store that outlives it.

In: model folders, a PEFT folder and JSON Lines. Out: a folder with the adapter that passed and ``evidence.json``.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from readapt_api.digest import digest_of, digest_path
from readapt_api.jobs import AdaptationSettings, AdaptItem, AdaptRequest, GateSettings
from readapt_runtime.adapt import ladder
from readapt_runtime.adapt.base import fix_threads, load_base
from readapt_runtime.adapt.data import read_examples, split
from readapt_runtime.adapt.errors import BadData
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.repair import Item, Move, Repaired, repair, seed_of
from readapt_runtime.drift import measure, read_drift
from readapt_runtime.lora_format import base_shapes, read_adapter, write_adapter
from readapt_runtime.out_folder import make_out
from readapt_runtime.progress import ConsoleLog
from readapt_runtime.store import Store

EVIDENCE = "evidence.json"


@dataclass(frozen=True, slots=True)
class Folders:
    """Inputs and output of the command."""

    old_base: Path
    new_base: Path
    adapter: Path
    train: Path
    validation: Path
    test: Path | None
    out: Path


def adapt_folders(folders: Folders, adaptation: AdaptationSettings, gate: GateSettings) -> dict[str, object]:
    """Climbs the ladder and returns what to print. Raises BadOut and the Terminal errors of the inputs."""
    begin = time.monotonic()
    make_out(folders.out)
    fix_threads()
    with ConsoleLog() as log, tempfile.TemporaryDirectory(prefix="readapt-") as scratch:
        drift = Path(scratch) / "drift"
        log.progress(0.0, "measuring the drift of the base")
        measure(folders.old_base, folders.new_base, drift, log)
        request = _request(folders, drift, adaptation, gate)
        move = Move(
            load_base(folders.old_base, request.old_base),
            load_base(folders.new_base, request.new_base),
            read_drift(drift),
        )
        item = _item(folders, request)
        repaired = repair(move, item, Store(Path(scratch) / "store"), log)
    _write(folders, request, repaired, {"seed": item.seed, **circumstances(move.new)})
    return _result(folders, repaired, time.monotonic() - begin)


def _request(folders: Folders, drift: Path, adaptation: AdaptationSettings, gate: GateSettings) -> AdaptRequest:
    """The request that a Job would get: it names the work, and the seed follows from its hash."""
    for file in (folders.train, folders.validation, folders.test):
        if file is not None and not file.is_file():
            raise BadData(f"{file}: no such file")
    data = [digest_path(file) for file in (folders.train, folders.validation, folders.test) if file is not None]
    item = AdaptItem(
        name=folders.adapter.resolve().name,
        reference=digest_path(folders.adapter),
        data=digest_of(data),
        adaptation=adaptation,
        gate=gate,
    )
    return AdaptRequest(
        old_base=digest_path(folders.old_base),
        new_base=digest_path(folders.new_base),
        drift=digest_path(drift),
        items=(item,),
    )


def _item(folders: Folders, request: AdaptRequest) -> Item:
    wanted = request.items[0]
    test = read_examples(folders.test) if folders.test is not None else ()
    return Item(
        name=wanted.name,
        adapter=read_adapter(folders.adapter, base_shapes(folders.new_base)),
        reference=wanted.reference,
        splits=split(read_examples(folders.train), read_examples(folders.validation), test),
        data=wanted.data,
        adaptation=wanted.adaptation,
        gate=wanted.gate,
        seed=seed_of(request.item_hash(wanted)),
    )


def _write(folders: Folders, request: AdaptRequest, repaired: Repaired, facts: dict[str, object]) -> None:
    if repaired.adapter is not None:
        write_adapter(folders.out, repaired.adapter, request.new_base)
    document = {"request": request.to_wire(), **facts, **repaired.evidence}
    (folders.out / EVIDENCE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _result(folders: Folders, repaired: Repaired, seconds: float) -> dict[str, object]:
    last = repaired.rungs[-1]
    return {
        "passed": repaired.adapter is not None,
        "origin": None if repaired.origin is None else repaired.origin.value,
        "rank": None if repaired.adapter is None else repaired.adapter.rank,
        "score": last.score,
        "reference": last.reference,
        "interval": last.interval.to_wire(),
        "retention": last.retention,
        "reason": ladder.reason(repaired.rungs),
        "message": last.message,
        "rungs": [rung.to_wire() for rung in repaired.rungs],
        "repairSeconds": seconds,
        "out": str(folders.out),
    }
