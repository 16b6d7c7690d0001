"""The extract Job: a Base and a Checkpoint artifact in, a LoRA variant that does as well as the checkpoint out.

The adapter is first held against the weights (module by module, in ``extract``), then the gate holds its answers
against the checkpoint's own on the examples that nothing else sees. Only a variant that passes is published; the
outcome, with its evidence, is recorded either way. Where the gate is skipped the weights are all that is checked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from readapt_api.adaptation import GateMode
from readapt_api.artifacts import PROBE, ArtifactKind, FactorBlock, Origin, Provenance
from readapt_api.conditions import GATE_SKIPPED
from readapt_api.errors import Terminal
from readapt_api.jobs import ExtractRequest, GateVerdict, Outcome, RungResult
from readapt_runtime.adapt import gate, ladder
from readapt_runtime.adapt.base import fix_threads, load_base
from readapt_runtime.adapt.comparison import AnswerCache, AnswerStream, Comparison, Pair, compare
from readapt_runtime.adapt.data import Splits, read_splits
from readapt_runtime.adapt.measure import Measure
from readapt_runtime.adapt.share import Share
from readapt_runtime.adapt.suitability import require_room
from readapt_runtime.device import choose_repeatable
from readapt_runtime.extract import EXTRACT_REPORT, Extraction, Options, RankPolicy, extract
from readapt_runtime.extract.sidecar import SIDECAR_WEIGHTS
from readapt_runtime.lora_format import base_shapes, read_adapter
from readapt_runtime.probe_file import write_probe
from readapt_runtime.progress import Log
from readapt_runtime.report.keeping import keep_report
from readapt_runtime.store import Artifact, Store


class GateNeedsData(Terminal):
    """An extracted variant is compared with its checkpoint, and there are no examples to do it on."""


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The opened artifacts of a request."""

    base: Artifact
    checkpoint: Artifact
    splits: Splits | None
    """None where the gate is skipped."""


def run(request: ExtractRequest, store: Store, log: Log) -> Outcome:
    """Extracts, gates, publishes and records. Raises what ``extract``, the data and the store raise, GateNeedsData."""
    started = time.monotonic()
    fix_threads()
    inputs = _open(request, store)
    policy = RankPolicy(
        request.fixed_rank,
        None if request.energy is None else float(request.energy),
        None if request.relative_error is None else float(request.relative_error),
        request.budget,
        request.max_rank,
        request.target_modules,
    )
    with store.stage() as folder:
        options = Options(choose_repeatable("auto"))
        found = extract(inputs.base.path, inputs.checkpoint.path, folder, policy, Share(log, 0.0, 0.5), options)
        gating = Share(log, 0.5, 0.5)
        seen = None if inputs.splits is None else _gate(request, inputs, inputs.splits, folder, store, gating)
        rung = None if seen is None else _rung(request, seen, found, time.monotonic() - started)
        passed = rung is None or rung.verdict is GateVerdict.PASSED
        variant = _publish(request, inputs, found, store) if passed else None
    evidence = _evidence(request, seen, rung, found, inputs.splits)
    outcome = Outcome(
        name=request.name,
        input_hash=request.input_hash,
        passed=variant is not None,
        variant=variant,
        origin=Origin.EXTRACTED,
        rank=found.rank,
        rungs=() if rung is None else (rung,),
        repair_seconds=time.monotonic() - started,
        reason=GATE_SKIPPED if rung is None else ladder.reason((rung,)),
        message=_kept(found) if rung is None else rung.message,
        evidence=store.write_evidence(request.input_hash, evidence),
    )
    outcome = keep_report(store, outcome, evidence, log)
    store.write_result(request.input_hash, outcome)
    log.progress(1.0, "done")
    log.info("extracted", adapter=request.name, passed=outcome.passed, reason=outcome.reason, message=outcome.message)
    return outcome


def _open(request: ExtractRequest, store: Store) -> _Inputs:
    base, checkpoint = store.open(request.base), store.open(request.checkpoint)
    if request.gate.mode is GateMode.SKIP:
        return _Inputs(base, checkpoint, None)
    if request.data is None:
        raise GateNeedsData(f"{request.name}: an extracted variant is compared with its checkpoint on spec.data")
    return _Inputs(base, checkpoint, read_splits(store.open(request.data).path, request.gate.metric))


def _gate(request: ExtractRequest, inputs: _Inputs, splits: Splits, folder: Path, store: Store, log: Log) -> Comparison:
    """The checkpoint's answers are cached: another rank of the same checkpoint does not ask them again."""
    device = choose_repeatable("auto")
    base = load_base(inputs.base.path, request.base, device=device)
    checkpoint = load_base(inputs.checkpoint.path, request.checkpoint, base.dtype, device)
    adapter = read_adapter(folder, base_shapes(inputs.base.path))
    require_room(base, splits)
    settings, measure = request.gate, Measure.of(request.gate.metric, splits, base)
    examples = splits.gate[: settings.max_samples]
    rule = gate.Rule.for_policy(float(settings.confidence), float(settings.max_regression), len(examples), rungs=1)
    cache = AnswerCache.of(store, request.checkpoint, checkpoint, request.data or "", "gate", measure.form)
    reference = AnswerStream(Pair(checkpoint, None), examples, measure.form, cache)
    candidate = AnswerStream(Pair(base, adapter), examples, measure.form)
    comparing = "comparing with the checkpoint"
    return compare(reference, candidate, measure, rule, lambda share: log.progress(share, comparing))


def _kept(found: Extraction) -> str:
    return f"rank {found.rank} keeps {found.report.energy:.1%} of the change"


def _rung(request: ExtractRequest, seen: Comparison, found: Extraction, seconds: float) -> RungResult:
    metric = request.gate.metric
    scores = f"{metric} {metric.unit.score(seen.score)}, the checkpoint's is {metric.unit.score(seen.reference)}"
    text = f"{_kept(found)}; {scores}"
    needed = "" if seen.samples_needed is None else f"; about {seen.samples_needed} examples would decide"
    return RungResult(
        origin=Origin.EXTRACTED,
        verdict=ladder.VERDICTS[seen.decision],
        metric=metric,
        score=seen.score,
        reference=seen.reference,
        interval=seen.interval,
        samples=seen.evidence.samples,
        samples_needed=seen.samples_needed,
        seconds=seconds,
        message=text + needed,
    )


def _publish(request: ExtractRequest, inputs: _Inputs, found: Extraction, store: Store) -> str:
    """The variant with its probe; report and sidecar go beside it and are not part of its digest."""
    prompts = [] if inputs.splits is None else [example.prompt for example in inputs.splits.train[:8]]
    write_probe(found.folder, inputs.base, prompts)
    beside = [PROBE, EXTRACT_REPORT, SIDECAR_WEIGHTS]
    manifest = store.publish(
        ArtifactKind.VARIANT,
        found.folder,
        base=request.base,
        rank=found.rank,
        blocks=(FactorBlock(),),
        provenance=Provenance(
            origin=Origin.EXTRACTED,
            source=request.checkpoint,
            input_hash=request.input_hash,
            parameters={"energy": f"{found.report.energy:.6f}", "relative_error": f"{found.report.relative_error:.6f}"},
        ),
        attachments=[name for name in beside if (found.folder / name).is_file()],
    )
    return manifest.digest


def _evidence(
    request: ExtractRequest, seen: Comparison | None, rung: RungResult | None, found: Extraction, splits: Splits | None
) -> dict[str, object]:
    evidence: dict[str, object] = {"request": request.to_wire(), "extraction": found.report.to_wire()}
    if seen is not None and rung is not None and splits is not None:
        evidence |= {
            "counts": seen.evidence.facts(),
            "rungs": [rung.to_wire()],
            "choices": len(splits.choices),
            "leaked": splits.leaked,
            "repeated": splits.repeated,
        }
    return evidence
