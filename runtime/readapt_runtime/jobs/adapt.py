"""The ``adapt`` Job: several adapters over one base move.

In: digests of both bases, their drift, and per item the reference variant and its data. Out: per item an ``Outcome``
under the item's own hash, evidence beside it, and the variant that passed, with its probe. An exhausted ladder is a
result, not an error. The bases are loaded once, when the first item needs them; an item whose result is there already
is not computed again, and one whose gate is skipped is copied.
"""

from __future__ import annotations

import time
from pathlib import Path

from readapt_api.adaptation import GateMode
from readapt_api.artifacts import FactorBlock, Origin, Provenance
from readapt_api.conditions import GATE_SKIPPED
from readapt_api.contract import Digest
from readapt_api.errors import Terminal, Transient
from readapt_api.jobs import AdaptItem, AdaptRequest, Outcome
from readapt_runtime.adapt import ladder
from readapt_runtime.adapt.base import fix_threads, load_base
from readapt_runtime.adapt.data import read_splits
from readapt_runtime.adapt.evidence import circumstances
from readapt_runtime.adapt.item import Item, Move
from readapt_runtime.adapt.repair import Repaired, repair
from readapt_runtime.adapt.share import Share
from readapt_runtime.continual.blocks import Learned
from readapt_runtime.continual.files import factor_blocks, is_learned, read_learned, write_learned
from readapt_runtime.device import choose_repeatable
from readapt_runtime.drift import read_drift
from readapt_runtime.jobs.recorded import recorded_outcome
from readapt_runtime.jobs.variant import publish_variant
from readapt_runtime.lora_format import LoraAdapter, base_shapes, read_adapter, write_adapter
from readapt_runtime.progress import Log
from readapt_runtime.report.keeping import keep_report
from readapt_runtime.store import Store


class WrongBase(Terminal):
    """A reference variant or an artifact that does not belong to this move."""


def run(request: AdaptRequest, store: Store, log: Log) -> tuple[Outcome, ...]:
    """The outcomes of the items in the order of the request, each already in the store.

    Raises MissingArtifact (Transient) and the Terminal errors of the first item, whose Job it is. Another item whose
    inputs are no good is left out with a warning: it gets a Job of its own that says so.
    """
    threads, work = fix_threads(), _Work(request, store)
    log.info("adapting", items=len(request.items), threads=threads)
    outcomes = []
    for number, item in enumerate(request.items):
        count = len(request.items)
        share = Share(log, begin=number / count, width=1 / count, adapter=item.name if count > 1 else "")
        found = recorded_outcome(store, request.item_hash(item), item.name)
        try:
            outcomes.append(found or work.carry(item, share))
        except (Transient, Terminal) as error:
            if number == 0:
                raise
            log.warning("left out", adapter=item.name, reason=type(error).__name__, message=str(error))
    log.progress(1.0, "done")
    return tuple(outcomes)


class _Work:
    """What all items share."""

    def __init__(self, request: AdaptRequest, store: Store) -> None:
        self._request = request
        self._store = store
        self._new = store.open(request.new_base)
        self._move: Move | None = None
        self._loading = 0.0

    def carry(self, request: AdaptItem, log: Log) -> Outcome:
        """Carries one adapter over, publishes the variant that passed and records the outcome."""
        reference = self._store.open(request.reference)
        if reference.manifest.base != self._request.old_base:
            raise WrongBase(f"{request.name}: the reference variant belongs to {reference.manifest.base}")
        adapter = read_adapter(reference.path, base_shapes(self._new.path), manifest=reference.manifest)
        learned = read_learned(reference.path) if is_learned(reference.manifest) else None
        if request.data is None or request.gate.mode is GateMode.SKIP:
            outcome = self._copy(request, adapter, learned)
        else:
            outcome = self._repair(request, adapter, learned, request.data, log)
        self._store.write_result(outcome.input_hash, outcome)
        self._store.drop_progress(outcome.input_hash)
        seconds = outcome.repair_seconds
        log.info("adapted", adapter=request.name, passed=outcome.passed, reason=outcome.reason, seconds=seconds)
        return outcome

    def _copy(self, request: AdaptItem, adapter: LoraAdapter, learned: Learned | None) -> Outcome:
        """The old weights as they are, compared with nothing."""
        begin = time.monotonic()
        with self._store.stage() as folder:
            blocks = self._write(folder, adapter, learned)
            provenance = self._provenance(request, Origin.COPIED, {})
            variant = publish_variant(self._store, folder, self._new, None, adapter.rank, provenance, blocks=blocks)
        return Outcome(
            name=request.name,
            input_hash=self._request.item_hash(request),
            passed=True,
            variant=variant,
            origin=Origin.COPIED,
            rank=adapter.rank,
            repair_seconds=time.monotonic() - begin,
            reason=GATE_SKIPPED,
            message="Copied: the old weights, compared with nothing because the gate is skipped",
        )

    def _repair(
        self, request: AdaptItem, adapter: LoraAdapter, learned: Learned | None, data: Digest, log: Log
    ) -> Outcome:
        item = Item(
            name=request.name,
            adapter=adapter,
            reference=request.reference,
            splits=read_splits(self._store.open(data).path, request.gate.metric),
            data=data,
            adaptation=request.adaptation,
            gate=request.gate,
            input_hash=self._request.item_hash(request),
            learned=learned,
        )
        move = self._load()
        repaired = repair(move, item, self._store, log)
        evidence = self._evidence(request, item, move, repaired)
        outcome = Outcome(
            name=request.name,
            input_hash=item.input_hash,
            passed=repaired.adapter is not None,
            variant=self._publish_repaired(request, item, move, repaired),
            origin=repaired.origin,
            rank=None if repaired.adapter is None else repaired.adapter.rank,
            rungs=repaired.rungs,
            repair_seconds=repaired.seconds + self._loading,
            reason=ladder.reason(repaired.rungs),
            message=repaired.rungs[-1].message,
            evidence=self._store.write_evidence(item.input_hash, evidence),
        )
        return keep_report(self._store, outcome, evidence, log)

    def _load(self) -> Move:
        if self._move is None:
            begin, request = time.monotonic(), self._request
            device = choose_repeatable("auto")
            old = load_base(self._store.open(request.old_base).path, request.old_base, device=device)
            new = load_base(self._new.path, request.new_base, device=device)
            self._move = Move(old, new, read_drift(self._store.open(request.drift).path))
            self._loading = time.monotonic() - begin
        return self._move

    def _publish_repaired(self, request: AdaptItem, item: Item, move: Move, repaired: Repaired) -> Digest | None:
        """The digest of the variant that passed, with its probe beside it; None when none passed."""
        if repaired.adapter is None or repaired.origin is None:
            return None
        with self._store.stage() as folder:
            blocks = self._write(folder, repaired.adapter, repaired.learned)
            provenance = self._provenance(request, repaired.origin, repaired.parameters)
            rank, texts = repaired.adapter.rank, [example.prompt for example in item.splits.gate]
            return publish_variant(self._store, folder, self._new, move.new, rank, provenance, texts, blocks)

    def _write(self, folder: Path, adapter: LoraAdapter, learned: Learned | None) -> tuple[FactorBlock, ...]:
        """The variant's files; a sum of blocks keeps them."""
        if learned is None:
            write_adapter(folder, adapter, self._request.new_base)
            return (FactorBlock(),)
        write_learned(folder, learned, self._request.new_base, adapter.rank)
        return factor_blocks(learned)

    def _provenance(self, request: AdaptItem, origin: Origin, parameters: dict[str, object]) -> Provenance:
        return Provenance(
            origin=origin,
            source=request.reference,
            input_hash=self._request.item_hash(request),
            parameters={name: str(value) for name, value in parameters.items()},
        )

    def _evidence(self, request: AdaptItem, item: Item, move: Move, repaired: Repaired) -> dict[str, object]:
        return {
            "request": self._request.model_copy(update={"items": (request,)}).to_wire(),
            "seed": item.seed,
            **circumstances(move.new),
            **repaired.evidence,
        }
