"""The extract Job: a Base and a Checkpoint artifact in, a LoRA variant that does as well as the checkpoint out.

The adapter is first held against the weights (module by module, in ``extract``), then the gate holds its answers
against the checkpoint's own on the examples that nothing else sees. Only a variant that passes is published; the
outcome, with its evidence, is recorded either way.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from readapt_api.artifacts import PROBE, ArtifactKind, FactorBlock, Origin, Provenance
from readapt_api.errors import Terminal
from readapt_api.jobs import ExtractRequest, GateVerdict, Outcome, RungResult
from readapt_runtime.adapt import gate, ladder
from readapt_runtime.adapt.base import fix_threads, load_base
from readapt_runtime.adapt.comparison import AnswerCache, AnswerStream, Comparison, Pair, compare
from readapt_runtime.adapt.data import Splits, read_splits
from readapt_runtime.extract import EXTRACT_REPORT, Extraction, RankPolicy, extract
from readapt_runtime.extract.sidecar import SIDECAR_WEIGHTS
from readapt_runtime.lora_format import base_shapes, read_adapter
from readapt_runtime.probe_file import write_probe
from readapt_runtime.progress import Log
from readapt_runtime.store import Artifact, Store


class GateNeedsData(Terminal):
    """An extracted variant is compared with its checkpoint, and there are no examples to do it on."""


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The opened artifacts of a request."""

    base: Artifact
    checkpoint: Artifact
    splits: Splits


def run(request: ExtractRequest, store: Store, log: Log) -> Outcome:
    """Extracts, gates, publishes and records. Raises what ``extract``, the data and the store raise, GateNeedsData."""
    started = time.monotonic()
    fix_threads()
    inputs = _open(request, store)
    policy = RankPolicy(
        request.fixed_rank,
        None if request.energy is None else float(request.energy),
        request.max_rank,
        request.target_modules,
    )
    with store.stage() as folder:
        found = extract(inputs.base.path, inputs.checkpoint.path, folder, policy, log)
        seen = _gate(request, inputs, folder, store, log)
        rung = _rung(seen, found, time.monotonic() - started)
        variant = _publish(request, inputs, found, store) if rung.verdict is GateVerdict.PASSED else None
    outcome = Outcome(
        name=request.name,
        input_hash=request.input_hash,
        passed=variant is not None,
        variant=variant,
        origin=Origin.EXTRACTED,
        rank=found.rank,
        rungs=(rung,),
        repair_seconds=rung.seconds,
        reason=ladder.reason((rung,)),
        message=rung.message,
        evidence=store.write_evidence(request.input_hash, _evidence(request, seen, found, inputs.splits)),
    )
    store.write_result(request.input_hash, outcome)
    log.info("gated", verdict=rung.verdict.value, score=rung.score, reference=rung.reference, samples=rung.samples)
    return outcome


def _open(request: ExtractRequest, store: Store) -> _Inputs:
    if request.data is None:
        raise GateNeedsData(f"{request.name}: an extracted variant is compared with its checkpoint on spec.data")
    splits = read_splits(store.open(request.data).path)
    return _Inputs(store.open(request.base), store.open(request.checkpoint), splits)


def _gate(request: ExtractRequest, inputs: _Inputs, folder: Path, store: Store, log: Log) -> Comparison:
    """The checkpoint's answers are cached: another rank of the same checkpoint does not ask them again."""
    base = load_base(inputs.base.path, request.base)
    checkpoint = load_base(inputs.checkpoint.path, request.checkpoint, base.dtype)
    adapter = read_adapter(folder, base_shapes(inputs.base.path))
    examples = inputs.splits.gate[: request.gate.max_samples]
    settings = request.gate
    rule = gate.Rule.for_policy(float(settings.confidence), float(settings.max_regression), len(examples), rungs=1)
    cache = AnswerCache.of(store, request.checkpoint, checkpoint, request.data or "", "gate")
    reference = AnswerStream(Pair(checkpoint, None), examples, inputs.splits.choices, cache)
    candidate = AnswerStream(Pair(base, adapter), examples, inputs.splits.choices)
    return compare(reference, candidate, rule, lambda share: log.progress(share, "comparing with the checkpoint"))


def _rung(seen: Comparison, found: Extraction, seconds: float) -> RungResult:
    scores = f"accuracy {seen.score:.1%}, the checkpoint's is {seen.reference:.1%}"
    text = f"rank {found.rank} keeps {found.report.energy:.1%} of the change; {scores}"
    needed = "" if seen.samples_needed is None else f"; about {seen.samples_needed} examples would decide"
    return RungResult(
        origin=Origin.EXTRACTED,
        verdict=ladder.VERDICTS[seen.decision],
        score=seen.score,
        reference=seen.reference,
        interval=seen.interval,
        samples=seen.counts.samples,
        samples_needed=seen.samples_needed,
        seconds=seconds,
        message=text + needed,
    )


def _publish(request: ExtractRequest, inputs: _Inputs, found: Extraction, store: Store) -> str:
    """The variant with its probe; report and sidecar go beside it and are not part of its digest."""
    prompts = [example.prompt for example in inputs.splits.train[:8]]
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


def _evidence(request: ExtractRequest, seen: Comparison, found: Extraction, splits: Splits) -> dict[str, object]:
    return {
        "request": request.to_wire(),
        "counts": asdict(seen.counts),
        "score": seen.score,
        "reference": seen.reference,
        "interval": seen.interval.to_wire(),
        "choices": len(splits.choices),
        "leaked": splits.leaked,
        "extraction": found.report.to_wire(),
    }
