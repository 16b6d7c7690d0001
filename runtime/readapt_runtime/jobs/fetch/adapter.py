"""Role Adapter: an existing PEFT adapter becomes the Native variant of the base it was trained on."""

from __future__ import annotations

from readapt_api.artifacts import PROBE, ArtifactKind, FactorBlock, Origin, Provenance
from readapt_api.digest import variant_digest
from readapt_api.jobs import FetchOutcome, FetchRequest
from readapt_runtime.jobs.fetch.source import (
    HashedSource,
    hash_source,
    names_of,
    naming,
    required_base,
    single_source,
)
from readapt_runtime.lora_format import base_shapes, read_adapter
from readapt_runtime.probe_file import write_probe
from readapt_runtime.progress import Log
from readapt_runtime.safe_tensors import BadWeights
from readapt_runtime.store import Artifact, ReservedName, Store


def fetch_adapter(request: FetchRequest, store: Store, log: Log) -> FetchOutcome:
    """Validates against the base's shapes, records the probe, publishes the files as they are."""
    hashed = hash_source(single_source(request))
    base = store.open(required_base(request))
    variant = variant_digest(base.manifest.digest, hashed.files)
    if not store.has(variant):
        _publish(request, hashed, base, store, log)
    rank = store.open(variant).manifest.rank or 0
    if rank > request.max_rank:
        raise BadWeights(f"{hashed.source.uri}: rank {rank} is above the allowed {request.max_rank}")
    return FetchOutcome(
        input_hash=request.input_hash,
        digest=hashed.digest,
        size_bytes=hashed.size_bytes,
        variant=variant,
        rank=rank,
        files=len(hashed.files),
    )


def _publish(request: FetchRequest, hashed: HashedSource, base: Artifact, store: Store, log: Log) -> None:
    if PROBE in names_of(hashed.files):
        raise ReservedName(f"{hashed.source.uri}: {PROBE} is a name that Readapt needs; remove the file")
    with store.stage() as folder:
        hashed.copy(folder)
        with naming(hashed.source, folder):
            adapter = read_adapter(folder, base_shapes(base.path), request.max_rank)
        log.info("adapter fits its base", modules=len(adapter.modules), rank=adapter.rank)
        write_probe(folder, base)
        store.publish(
            ArtifactKind.VARIANT,
            folder,
            base=base.manifest.digest,
            rank=adapter.rank,
            blocks=(FactorBlock(),),
            provenance=Provenance(origin=Origin.NATIVE, source=hashed.digest, input_hash=request.input_hash),
            attachments=(PROBE,),
        )
