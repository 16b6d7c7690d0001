"""A variant goes into the store, with the probe that serving pods measure again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from readapt_api.artifacts import PROBE, ArtifactKind, FactorBlock, Provenance
from readapt_api.contract import Digest
from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.probe import candidate_prompts, record
from readapt_runtime.probe_file import save_probe
from readapt_runtime.store import Artifact, Store

PROBE_TEXTS = 8


def publish_variant(
    store: Store,
    folder: Path,
    artifact: Artifact,
    base: LoadedBase | None,
    rank: int,
    provenance: Provenance,
    texts: Sequence[str] = (),
    blocks: Sequence[FactorBlock] = (FactorBlock(),),
) -> Digest:
    """Publishes a staged PEFT folder for ``artifact``, loaded as ``base`` if it is; its probe may use ``texts``.

    The probe is in fp32 whatever the work ran in: it is what other processes are compared with. Raises InertAdapter,
    NonFiniteAnswers and what the store raises.
    """
    if base is None or base.dtype != torch.float32:
        base = load_base(artifact.path, artifact.manifest.digest, torch.float32)
    save_probe(folder, record(base.model, folder, candidate_prompts(base.tokenizer, texts[:PROBE_TEXTS])))
    manifest = store.publish(
        ArtifactKind.VARIANT,
        folder,
        base=base.digest,
        rank=rank,
        blocks=blocks,
        provenance=provenance,
        attachments=(PROBE,),
    )
    return manifest.digest
