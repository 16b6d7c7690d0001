"""The ``adapt`` Job: several adapters over one base move.

In: digests of both bases, their drift, and per item the reference variant and its data. Out: per item an ``Outcome``
under the item's own hash, evidence beside it, and the variant that passed, with its probe. An exhausted ladder is a
result, not an error. The bases are loaded once; an item whose result is there already is not computed again, one that
was interrupted goes on where its journal ends.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from readapt_api.artifacts import PROBE, ArtifactKind, FactorBlock, Provenance
from readapt_api.errors import Terminal
from readapt_api.jobs import AdaptItem, AdaptRequest, Outcome
from readapt_runtime.adapt import ladder
from readapt_runtime.adapt.base import fix_threads, load_base
from readapt_runtime.adapt.data import read_splits
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.repair import Item, Move, Repaired, repair
from readapt_runtime.adapt.share import Share
from readapt_runtime.drift import read_drift
from readapt_runtime.jobs.recorded import recorded_outcome
from readapt_runtime.lora_format import base_shapes, read_adapter, write_adapter
from readapt_runtime.probe import candidate_prompts, record
from readapt_runtime.probe_file import save_probe
from readapt_runtime.progress import Log
from readapt_runtime.store import Artifact, Store

_PROBE_TEXTS = 8


class WrongBase(Terminal):
    """A reference variant or an artifact that does not belong to this move."""


def run(request: AdaptRequest, store: Store, log: Log) -> tuple[Outcome, ...]:
    """The outcomes of all items in the order of the request, each already in the store.

    Raises MissingArtifact (Transient) and the Terminal errors of the inputs; what earlier items recorded stands.
    """
    begin = time.monotonic()
    threads = fix_threads()
    work = _Work.load(request, store)
    log.info("adapting", items=len(request.items), threads=threads, dtype=str(work.move.new.dtype))
    loading = time.monotonic() - begin
    outcomes = []
    for number, item in enumerate(request.items):
        share = Share(log, begin=number / len(request.items), width=1 / len(request.items))
        found = recorded_outcome(store, request.item_hash(item), item.name)
        outcomes.append(found or work.carry(item, share, loading))
    log.progress(1.0, "done")
    return tuple(outcomes)


@dataclass(frozen=True, slots=True)
class _Work:
    """What all items share."""

    request: AdaptRequest
    store: Store
    move: Move
    new: Artifact

    @classmethod
    def load(cls, request: AdaptRequest, store: Store) -> _Work:
        old, new = store.open(request.old_base), store.open(request.new_base)
        drift = read_drift(store.open(request.drift).path)
        move = Move(load_base(old.path, request.old_base), load_base(new.path, request.new_base), drift)
        return cls(request, store, move, new)

    def carry(self, request: AdaptItem, log: Log, loading: float) -> Outcome:
        """Repairs one adapter, publishes the variant that passed and records the outcome."""
        item = self._open(request)
        repaired = repair(self.move, item, self.store, log)
        seconds = repaired.seconds + loading
        outcome = Outcome(
            name=request.name,
            input_hash=self.request.item_hash(request),
            passed=repaired.adapter is not None,
            variant=self._publish(request, item, repaired),
            origin=repaired.origin,
            rank=None if repaired.adapter is None else repaired.adapter.rank,
            rungs=repaired.rungs,
            repair_seconds=seconds,
            reason=ladder.reason(repaired.rungs),
            message=repaired.rungs[-1].message,
            evidence=self._keep_evidence(request, item, repaired),
        )
        self.store.write_result(outcome.input_hash, outcome)
        self.store.drop_progress(outcome.input_hash)
        log.info("adapted", adapter=request.name, passed=outcome.passed, reason=outcome.reason, seconds=seconds)
        return outcome

    def _open(self, request: AdaptItem) -> Item:
        reference = self.store.open(request.reference)
        if reference.manifest.base != self.request.old_base:
            raise WrongBase(f"{request.name}: the reference variant belongs to {reference.manifest.base}")
        return Item(
            name=request.name,
            adapter=read_adapter(reference.path, base_shapes(self.new.path), manifest=reference.manifest),
            reference=request.reference,
            splits=read_splits(self.store.open(request.data).path),
            data=request.data,
            adaptation=request.adaptation,
            gate=request.gate,
            input_hash=self.request.item_hash(request),
        )

    def _publish(self, request: AdaptItem, item: Item, repaired: Repaired) -> str | None:
        """The digest of the variant that passed, with its probe beside it; None when none passed."""
        if repaired.adapter is None or repaired.origin is None:
            return None
        provenance = Provenance(
            origin=repaired.origin,
            source=request.reference,
            input_hash=self.request.item_hash(request),
            parameters={name: str(value) for name, value in repaired.parameters.items()},
        )
        with self.store.stage() as folder:
            write_adapter(folder, repaired.adapter, self.request.new_base)
            self._record_probe(folder, item)
            manifest = self.store.publish(
                ArtifactKind.VARIANT,
                folder,
                base=self.request.new_base,
                rank=repaired.adapter.rank,
                blocks=(FactorBlock(),),
                provenance=provenance,
                attachments=(PROBE,),
            )
        return manifest.digest

    def _record_probe(self, folder: Path, item: Item) -> None:
        """In fp32 whatever the repair ran in: the probe is what other processes are compared with."""
        base = self.move.new
        if base.dtype != torch.float32:
            base = load_base(self.new.path, self.request.new_base, torch.float32)
        texts = [example.prompt for example in item.splits.gate[:_PROBE_TEXTS]]
        save_probe(folder, record(base.model, folder, candidate_prompts(base.tokenizer, texts)))

    def _keep_evidence(self, request: AdaptItem, item: Item, repaired: Repaired) -> str:
        document = {
            "request": self.request.model_copy(update={"items": (request,)}).to_wire(),
            "seed": item.seed,
            **circumstances(self.move.new),
            **repaired.evidence,
        }
        return self.store.write_evidence(self.request.item_hash(request), document)
