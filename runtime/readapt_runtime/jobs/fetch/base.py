"""Roles Base and Checkpoint: a Hugging Face model folder that can be served, or extracted from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from readapt_api.artifacts import Architecture, ArtifactKind
from readapt_api.errors import Terminal
from readapt_api.jobs import FetchOutcome, FetchRequest, FetchRole
from readapt_runtime.jobs.fetch.source import HashedSource, hash_source, required_base, single_source
from readapt_runtime.model.config import read_config
from readapt_runtime.progress import Log
from readapt_runtime.safe_tensors import BadWeights, Checkpoint, TensorInfo, read_json_object
from readapt_runtime.store import Store

_IGNORED = "rotary_emb.inv_freq"
_HEAD = "lm_head.weight"
_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class BadModel(Terminal):
    """A model folder without a usable config or tokenizer."""


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
    """Config, tokenizer and every tensor of a model folder checked; raises BadModel, BadWeights, UnsupportedModel."""
    raw = read_json_object(folder / "config.json")
    if "auto_map" in raw:
        raise BadModel("config.json: auto_map asks for code of the model's own, which is never run")
    served = read_config(folder)
    config = _read_config(folder)
    _check_tokenizer(folder, served.vocab_size)
    with Checkpoint(folder) as checkpoint:
        infos = check_tensors(checkpoint.infos, config)
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


def check_tensors(found: Mapping[str, TensorInfo], config: PretrainedConfig) -> Mapping[str, TensorInfo]:
    """``found`` without what transformers ignores; raises BadWeights unless names and shapes are those of the config.

    The expected ones come from the model class itself, built without memory on the meta device.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings and _HEAD not in found:
        expected.pop(_HEAD, None)
    infos = {name: info for name, info in found.items() if not name.endswith(_IGNORED)}
    for name in sorted(infos.keys() ^ expected.keys()):
        known = "the config has no such tensor" if name in infos else "the config wants it, the weights lack it"
        raise BadWeights(f"{name}: {known}")
    for name, shape in expected.items():
        if infos[name].shape != shape:
            raise BadWeights(f"{name}: shape {list(infos[name].shape)}, the config wants {list(shape)}")
    return infos


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
        architecture = describe(folder, log)
        if request.role is FetchRole.CHECKPOINT:
            require_fit(architecture, store.open(required_base(request)).manifest.architecture)
        store.publish(kind, folder, architecture=architecture)
    return architecture


def _read_config(folder: Path) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"config.json: {error}"[:400]) from error
    return config


def _check_tokenizer(folder: Path, vocabulary: int) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        ids = tokenizer("Hello, world").input_ids
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"no usable tokenizer: {error}"[:400]) from error
    if not ids or max(ids) >= vocabulary:
        raise BadModel(f"the tokenizer makes ids up to {max(ids, default=-1)}, the model has {vocabulary}")
