"""What ``readapt train`` does: the work of the train Job, on directories.

A run that was interrupted goes on where it was when it is started again; what it needs is in ``--out``, hidden.
In: folders and files as users have them. Out: a PEFT folder and evidence.json in ``--out``, and what is printed.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from readapt_api.adaptation import Metric
from readapt_api.artifacts import Origin
from readapt_api.digest import digest_of, digest_path
from readapt_api.jobs import TrainRequest
from readapt_runtime.adapt.base import fix_threads, load_base
from readapt_runtime.adapt.data import read_examples, split
from readapt_runtime.adapt.evidence import EVIDENCE, circumstances
from readapt_runtime.adapt.journal import Journal
from readapt_runtime.adapt.measure import Measure
from readapt_runtime.lora_format import base_shapes, write_adapter
from readapt_runtime.out_folder import PROGRESS, make_out
from readapt_runtime.progress import ConsoleLog
from readapt_runtime.report.keeping import write_report
from readapt_runtime.store import Store
from readapt_runtime.training.score import score
from readapt_runtime.training.training import evidence_of, recipe_of, train


@dataclass(frozen=True, slots=True)
class Folders:
    """Inputs and output of the command."""

    base: Path
    train: Path
    validation: Path
    test: Path | None
    out: Path


def train_folders(folders: Folders, device: torch.device, **settings: Any) -> dict[str, object]:
    """Trains and returns what to print; ``settings`` as of TrainRequest.

    Raises BadOut and the Terminal errors of the inputs.
    """
    begin = time.monotonic()
    make_out(folders.out)
    files = [file for file in (folders.train, folders.validation, folders.test) if file is not None]
    test = read_examples(folders.test) if folders.test is not None else ()
    metric = settings.get("metric", Metric.ACCURACY)
    splits = split(read_examples(folders.train), read_examples(folders.validation), test, metric=metric)
    splits.require_tuning()
    request = TrainRequest(
        name=folders.out.resolve().name,
        base=digest_path(folders.base),
        data=digest_of([digest_path(file) for file in files]),
        **settings,
    )
    recipe = recipe_of(request)
    fix_threads()
    with ConsoleLog() as log:
        shapes = base_shapes(folders.base)
        base = load_base(folders.base, request.base, device=device)
        journal = Journal(Store(folders.out / PROGRESS), request.input_hash, circumstances(base), log)
        tuned = train(base, shapes, splits, recipe, journal, log)
        measure = Measure.of(metric, splits, base)
        rung = score(Origin.TRAINED, measure, base, tuned.adapter, splits.gate, time.monotonic() - begin)
    write_adapter(folders.out, tuned.adapter, request.base)
    evidence = {
        "request": request.to_wire(),
        **circumstances(base),
        **evidence_of(tuned, recipe),
        "rungs": [rung.to_wire()],
    }
    (folders.out / EVIDENCE).write_text(json.dumps(evidence, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_report(folders.out, log)
    shutil.rmtree(folders.out / PROGRESS, ignore_errors=True)
    return {
        "origin": Origin.TRAINED.value,
        "rank": tuned.adapter.rank,
        "score": rung.score,
        "reference": rung.reference,
        "interval": rung.interval.to_wire(),
        "samples": rung.samples,
        "steps": tuned.best.step,
        "seconds": rung.seconds,
        "out": str(folders.out),
    }
