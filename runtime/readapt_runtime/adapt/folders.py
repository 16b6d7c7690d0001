"""``readapt adapt`` on directories: what the Job does with artifacts, without a store that outlives it.

In: model folders, a PEFT folder and JSON Lines. Out: a folder with the adapter that passed and ``evidence.json`` (none
where the gate is skipped). While the work goes on there is a store in the hidden ``.progress`` of that folder: a run
that was interrupted goes on where it was when it is started again with the same arguments.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from readapt_api.adaptation import UNGATED_POLICIES, UNGATED_RULE, GateMode
from readapt_api.artifacts import Origin
from readapt_api.conditions import GATE_SKIPPED
from readapt_api.contract import Digest
from readapt_api.digest import digest_of, digest_path
from readapt_api.jobs import AdaptationSettings, AdaptItem, AdaptRequest, GateSettings
from readapt_runtime.adapt import ladder
from readapt_runtime.adapt.base import fix_threads, load_base
from readapt_runtime.adapt.data import Splits, read_examples, read_inputs, split
from readapt_runtime.adapt.evidence import EVIDENCE, circumstances
from readapt_runtime.adapt.item import Item, Move
from readapt_runtime.adapt.repair import Repaired, repair
from readapt_runtime.difference import CheckpointPair
from readapt_runtime.drift import measure, read_drift
from readapt_runtime.examples import BadData
from readapt_runtime.lora_format import LoraAdapter, read_adapter, write_adapter
from readapt_runtime.out_folder import PROGRESS, make_out
from readapt_runtime.progress import ConsoleLog, Log
from readapt_runtime.report.keeping import write_report
from readapt_runtime.store import Store


@dataclass(frozen=True, slots=True)
class Folders:
    """Inputs and output of the command."""

    old_base: Path
    new_base: Path
    adapter: Path
    train: Path | None
    validation: Path | None
    test: Path | None
    inputs: Path | None
    out: Path

    @property
    def data(self) -> list[Path]:
        """Those of the data files that were given."""
        files = (self.train, self.validation, self.test, self.inputs)
        return [file for file in files if file is not None]


def adapt_folders(
    folders: Folders, adaptation: AdaptationSettings, gate: GateSettings, device: torch.device
) -> dict[str, object]:
    """Climbs the ladder and returns what to print. Raises BadOut and the Terminal errors of the inputs."""
    begin = time.monotonic()
    make_out(folders.out)
    adapter = _read_adapter(folders)
    if gate.mode is GateMode.SKIP:
        return _copy(folders, adaptation, adapter, time.monotonic() - begin)
    splits = _read_splits(folders, adaptation, gate)
    fix_threads()
    progress = folders.out / PROGRESS
    with ConsoleLog() as log:
        bases = (folders.old_base, folders.new_base)
        old, new = (load_base(folder, digest_path(folder), device=device) for folder in bases)
        log.progress(0.0, "measuring the drift of the base")
        drift = progress / "drift"
        measure(folders.old_base, folders.new_base, drift, log)
        move = Move(old, new, read_drift(drift))
        data = digest_of([digest_path(file) for file in folders.data])
        request = _request(folders, move, digest_path(drift), data, adaptation, gate)
        item = _item(request, data, adapter, splits)
        repaired = repair(move, item, Store(progress), log)
        _write(folders, request, repaired, {"seed": item.seed, **circumstances(move.new)}, log)
    shutil.rmtree(progress)
    return _result(folders, repaired, time.monotonic() - begin)


def _read_adapter(folders: Folders) -> LoraAdapter:
    """Checked against the bases, and these against each other, before hours are spent on them."""
    with CheckpointPair(folders.old_base, folders.new_base) as pair:
        return read_adapter(folders.adapter, pair.shapes)


def _copy(folders: Folders, adaptation: AdaptationSettings, adapter: LoraAdapter, seconds: float) -> dict[str, object]:
    """The old weights as they are, compared with nothing."""
    if adaptation.policy not in UNGATED_POLICIES:
        raise BadData(f"{UNGATED_RULE}, not {adaptation.policy}")
    write_adapter(folders.out, adapter, digest_path(folders.new_base))
    return {
        "passed": True,
        "origin": Origin.COPIED.value,
        "rank": adapter.rank,
        "reason": GATE_SKIPPED,
        "message": "the old weights, compared with nothing because the gate is skipped",
        "rungs": [],
        "repairSeconds": seconds,
        "out": str(folders.out),
    }


def _read_splits(folders: Folders, adaptation: AdaptationSettings, gate: GateSettings) -> Splits:
    for file in folders.data:
        if not file.is_file():
            raise BadData(f"{file}: no such file")
    if (folders.train is None) != (folders.validation is None) or (folders.test and not folders.train):
        raise BadData("--train and --validation are given together, and --test only with them")
    train, validation, test = (
        () if file is None else read_examples(file) for file in (folders.train, folders.validation, folders.test)
    )
    if folders.test and not test:
        raise BadData(f"{folders.test} has no examples; without --test half of validation is the gate's")
    splits = split(train, validation, test, read_inputs(folders.inputs) if folders.inputs else (), gate.metric)
    ladder.rungs_of(adaptation.policy, splits)
    return splits


def _request(
    folders: Folders, move: Move, drift: Digest, data: Digest, adaptation: AdaptationSettings, gate: GateSettings
) -> AdaptRequest:
    """The request that a Job would get: it names the work, and the seed follows from its hash."""
    item = AdaptItem(
        name=folders.adapter.resolve().name,
        reference=digest_path(folders.adapter),
        data=data,
        adaptation=adaptation,
        gate=gate,
    )
    return AdaptRequest(old_base=move.old.digest, new_base=move.new.digest, drift=drift, items=(item,))


def _item(request: AdaptRequest, data: Digest, adapter: LoraAdapter, splits: Splits) -> Item:
    wanted = request.items[0]
    return Item(
        name=wanted.name,
        adapter=adapter,
        reference=wanted.reference,
        splits=splits,
        data=data,
        adaptation=wanted.adaptation,
        gate=wanted.gate,
        input_hash=request.item_hash(wanted),
    )


def _write(folders: Folders, request: AdaptRequest, repaired: Repaired, facts: dict[str, object], log: Log) -> None:
    if repaired.adapter is not None:
        write_adapter(folders.out, repaired.adapter, request.new_base)
    document = {"request": request.to_wire(), **facts, **repaired.evidence}
    (folders.out / EVIDENCE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_report(folders.out, log)


def _result(folders: Folders, repaired: Repaired, seconds: float) -> dict[str, object]:
    last = repaired.rungs[-1]
    return {
        "passed": repaired.adapter is not None,
        "origin": None if repaired.origin is None else repaired.origin.value,
        "rank": None if repaired.adapter is None else repaired.adapter.rank,
        "metric": last.metric.value,
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
