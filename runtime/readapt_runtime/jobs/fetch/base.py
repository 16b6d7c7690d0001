"""Roles Base and Checkpoint: a Hugging Face model folder that can be served, or extracted from."""

from __future__ import annotations

from pathlib import Path

import torch

from readapt_api.artifacts import Architecture, ArtifactKind
from readapt_api.errors import Terminal
from readapt_api.jobs import FetchOutcome, FetchRequest, FetchRole
from readapt_runtime.jobs.fetch.source import HashedSource, hash_source, naming, required_base, single_source
from readapt_runtime.model.config import read_config, transformers_config
from readapt_runtime.model.family import read_document
from readapt_runtime.model.tensors import check_tensors
from readapt_runtime.model.tokenizer import load_tokenizer
from readapt_runtime.progress import Log
from readapt_runtime.safe_tensors import BadWeights, Checkpoint
from readapt_runtime.store import Store

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class BadModel(Terminal):
    """A model folder that brings code of its own."""


class DoesNotFit(Terminal):
    """A checkpoint of another architecture than its base."""


def fetch_model(request: FetchRequest, store: Store, log: Log) -> FetchOutcome:
    """Publishes the folder as it is, once its weights are what its config says."""
    hashed = hash_source(single_source(request))
    known = store.open(hashed.digest).manifest.architecture if store.has(hashed.digest) else None
    architecture = known or _publish(request, hashed, store, log)
    if request.role is FetchRole.CHECKPOINT:
        base = store.open(required_base(request)).manifest
        require_fit(architecture, base.architecture)
    return FetchOutcome(
        input_hash=request.input_hash,
        digest=hashed.digest,
        size_bytes=hashed.size_bytes,
        architecture=architecture,
        files=len(hashed.files),
    )


def describe(folder: Path, log: Log) -> Architecture:
    """Config, tokenizer and every tensor of a model folder checked; raises BadModel, BadTokenizer, BadWeights or
    UnsupportedModel."""
    if "auto_map" in read_document(folder):
        raise BadModel("config.json: auto_map asks for code of the model's own, which is never run")
    served = read_config(folder)
    load_tokenizer(folder, served.vocab_size)
    with Checkpoint(folder) as checkpoint:
        infos = check_tensors(checkpoint.infos, transformers_config(folder))
        for done, name in enumerate(infos):
            values = checkpoint.read(name)
            if values.ndim == 2 and not bool(values.any()):
                raise BadWeights(f"{name}: nothing but zeros (a hole left by a failed copy?)")
            log.progress((done + 1) / len(infos), f"checking {name}")
    largest = max(infos.values(), key=lambda info: info.elements)
    return Architecture(
        model_type=served.model_type,
        hidden_size=served.hidden_size,
        num_layers=served.num_layers,
        vocab_size=served.vocab_size,
        parameters=sum(info.elements for info in infos.values()),
        dtype=_NAMES[largest.dtype],
    )


def require_fit(checkpoint: Architecture | None, base: Architecture | None) -> None:
    """Raises DoesNotFit naming the first dimension in which a checkpoint differs from its base."""
    if checkpoint is None or base is None:
        raise DoesNotFit("base or checkpoint is no model in this store")
    for field in ("model_type", "hidden_size", "num_layers", "vocab_size"):
        ours, theirs = getattr(checkpoint, field), getattr(base, field)
        if ours != theirs:
            raise DoesNotFit(f"the checkpoint's {field} is {ours}, its base's is {theirs}")


def _publish(request: FetchRequest, hashed: HashedSource, store: Store, log: Log) -> Architecture:
    kind = ArtifactKind.BASE if request.role is FetchRole.BASE else ArtifactKind.CHECKPOINT
    with store.stage() as folder:
        hashed.copy(folder)
        with naming(hashed.source, folder):
            architecture = describe(folder, log)
        if request.role is FetchRole.CHECKPOINT:
            require_fit(architecture, store.open(required_base(request)).manifest.architecture)
        store.publish(kind, folder, architecture=architecture)
    return architecture
