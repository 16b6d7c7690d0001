"""LoRA adapters as PEFT writes them.

In: a PEFT folder (``adapter_config.json``, ``adapter_model.safetensors``) and the linear shapes of its base. Out: a
``LoraAdapter`` whose every module fits that base. Next: serving registers it, ``adapt`` and ``probe`` work on it.
PEFT itself takes an adapter with keys missing (they stay at their inert initial value) or under a wrong prefix (they
are ignored), and then the base answers in the adapter's name; so the keys must be exactly those that the config names.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch

from readapt_api.artifacts import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Manifest
from readapt_api.digest import FileEntry, entry_of
from readapt_runtime.daemon_threads import DaemonThreads
from readapt_runtime.model.family import read_dimensions, read_document
from readapt_runtime.peft_config import PeftLoraConfig, parse_config
from readapt_runtime.safe_tensors import (
    ADAPTER_LIMITS,
    BadWeights,
    Data,
    TensorFile,
    hash_tensors,
    parse_json_object,
    read_bounded,
    read_json_object,
    save_readable,
)
from readapt_runtime.tensor_stream import Entry, write_stream

_BESIDE = DaemonThreads()
_PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


class Shape(NamedTuple):
    """Of a linear module's weight, ``[out, in]``."""

    out: int
    into: int


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The update ``scale * b @ a`` of one linear module's weight; ``scale`` is PEFT's alpha/r (or alpha/√r)."""

    name: str
    a: torch.Tensor  # [r, in]
    b: torch.Tensor  # [out, r]
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """The modules of an adapter by name (``model.layers.0.self_attn.q_proj``), in the order of the base."""

    modules: Mapping[str, LoraModule]

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max((module.rank for module in self.modules.values()), default=0)

    @property
    def fingerprint(self) -> str:
        """sha256 that adapters of equal modules, scales and factors share."""
        scales = {name: torch.tensor([module.scale], dtype=torch.float64) for name, module in self.modules.items()}
        factors = {f"{name}.{side}": getattr(m, side) for name, m in self.modules.items() for side in "ab"}
        return hash_tensors({**scales, **factors})


def base_shapes(folder: Path) -> dict[str, Shape]:
    """``linear_shapes`` of a model folder; raises UnsupportedModel, which names the folder, and BadWeights."""
    return linear_shapes(read_document(folder))


def linear_shapes(config: Mapping[str, object]) -> dict[str, Shape]:
    """Module name -> (out, in) of the linear modules of the decoder layers, from a model's config.json.

    Raises UnsupportedModel for what ``model.family`` refuses, as serving does.
    """
    found = read_dimensions(config)
    hidden, inner, q, kv = found.hidden_size, found.intermediate_size, found.q_size, found.kv_size
    layer = {
        "self_attn.q_proj": Shape(q, hidden),
        "self_attn.k_proj": Shape(kv, hidden),
        "self_attn.v_proj": Shape(kv, hidden),
        "self_attn.o_proj": Shape(hidden, q),
        "mlp.gate_proj": Shape(inner, hidden),
        "mlp.up_proj": Shape(inner, hidden),
        "mlp.down_proj": Shape(hidden, inner),
    }
    layers = range(found.num_layers)
    return {f"model.layers.{n}.{name}": shape for n in layers for name, shape in layer.items()}


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The bytes that an adapter was read from; the weights are hashed beside what is made of them meanwhile."""

    config: FileEntry
    hashing: Future[FileEntry]

    @property
    def entries(self) -> tuple[FileEntry, FileEntry]:
        """Waits until the weights are hashed."""
        return self.config, self.hashing.result()

    def require(self, manifest: Manifest) -> None:
        """Raises BadWeights unless the manifest lists these bytes."""
        for found in self.entries:
            _require_listed(found, manifest)


class AdapterFile:
    """The weights of a PEFT folder, opened; every module fits the base; a context manager."""

    def __init__(
        self, folder: Path, config: PeftLoraConfig, shapes: Mapping[str, tuple[int, int]], max_rank: int | None = None
    ) -> None:
        """Reads the header alone. Raises as ``read_adapter`` does."""
        self._config = config
        self.modules = [name for name in shapes if config.targets(name)]
        if not self.modules:
            raise BadWeights(f"{ADAPTER_CONFIG}: its target_modules match no linear module of the base")
        self._file = TensorFile(folder / ADAPTER_WEIGHTS, ADAPTER_LIMITS)
        try:
            _check_keys(self._file.infos, self.modules, shapes)
            for name in self.modules:
                _check_shapes(self._file, name, Shape(*shapes[name]), config, max_rank)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> LoraModule:
        """One module. Raises BadWeights for NaN and an A of zeros, FileChanged."""
        tensors = {key: self._file.read(key) for key in (f"{_PREFIX}{name}.lora_{side}.weight" for side in "AB")}
        return _module(tensors, frozenset(tensors), name, self._config)

    def read_all(self) -> Data:
        """See ``TensorFile.read_all``."""
        return self._file.read_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def open_adapter(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> AdapterFile:
    """For adapters that are read module by module. Raises as ``read_adapter`` does."""
    return AdapterFile(folder, parse_config(read_json_object(folder / ADAPTER_CONFIG)), shapes)


def read_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    max_rank: int | None = None,
    manifest: Manifest | None = None,
) -> LoraAdapter:
    """The adapter in a PEFT folder, every module checked against ``shapes`` (name -> (out, in)).

    Tensors keep their stored dtype (float32, float16 or bfloat16), on the CPU. With ``manifest`` the bytes must be
    those that it lists. Raises BadWeights with the module's name: options that cannot be served, keys beyond or short
    of the config, shapes that do not fit, ranks above ``max_rank``, NaN, an A of zeros.
    """
    adapter, files = read_adapter_files(folder, shapes, max_rank, manifest)
    if manifest is not None:
        files.require(manifest)
    return adapter


def read_adapter_files(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    max_rank: int | None = None,
    manifest: Manifest | None = None,
) -> tuple[LoraAdapter, AdapterFiles]:
    """``read_adapter`` for who has other work to do until the bytes are hashed: ``require`` of the manifest is left.

    Each file is read once: what is checked, served and named are the same bytes.
    """
    content = read_bounded(folder / ADAPTER_CONFIG)
    entry = entry_of(content, ADAPTER_CONFIG)
    if manifest is not None:
        _require_listed(entry, manifest)
    config = parse_config(parse_json_object(content, ADAPTER_CONFIG))
    with AdapterFile(folder, config, shapes, max_rank) as file:
        data, expected = file.read_all(), file.modules
    files = AdapterFiles(entry, _BESIDE.submit(entry_of, data.content, ADAPTER_WEIGHTS))
    try:
        tensors, hollow = data.tensors(), data.hollow()
        return LoraAdapter({name: _module(tensors, hollow, name, config) for name in expected}), files
    except BadWeights:
        if manifest is not None:
            files.require(manifest)  # that the bytes have changed says more
        raise


def write_adapter(folder: Path, adapter: LoraAdapter, base_name: str) -> None:
    """Writes a PEFT folder that PEFT, and ``read_adapter``, read back as the same function.

    Equal adapters give equal bytes. ``alpha`` carries the scale, so that the factors are stored untouched.
    """
    if not adapter.modules:
        raise BadWeights("an adapter without modules")
    scales = {name: (module.rank, module.scale) for name, module in adapter.modules.items()}
    _write_config(folder, scales, base_name)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in adapter.modules.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = module.a.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = module.b.detach().cpu().contiguous()
    save_readable(folder / ADAPTER_WEIGHTS, tensors)


def write_adapter_stream(
    folder: Path, ranks: Mapping[str, int], shapes: Mapping[str, Shape], factors: Iterable[LoraModule], base_name: str
) -> None:
    """``write_adapter`` for an adapter that need not fit into memory, float32, of scale 1.

    ``factors`` are the modules of ``ranks``, in its order, one after the other.
    """
    _write_config(folder, {name: (rank, 1.0) for name, rank in ranks.items()}, base_name)
    entries: dict[str, Entry] = {}
    for name, rank in ranks.items():
        entries[f"{_PREFIX}{name}.lora_A.weight"] = Entry(torch.float32, (rank, shapes[name].into))
        entries[f"{_PREFIX}{name}.lora_B.weight"] = Entry(torch.float32, (shapes[name].out, rank))
    sides = (side for module in factors for side in (module.a, module.b))
    write_stream(folder / ADAPTER_WEIGHTS, entries, sides)


def _write_config(folder: Path, scales: Mapping[str, tuple[int, float]], base_name: str) -> None:
    """``scales``: module name -> (rank, scale)."""
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps(_config_document(scales, base_name), indent=2, sort_keys=True) + "\n"
    (folder / ADAPTER_CONFIG).write_text(document, encoding="utf-8")


def _require_listed(found: FileEntry, manifest: Manifest) -> None:
    listed = next((file for file in manifest.files if file.name == found.name), None)
    if listed is None:
        raise BadWeights(f"{manifest.digest}: its manifest lists no {found.name}")
    if listed != found:
        raise BadWeights(f"{found.name}: its sha256 is not that of the manifest")


def _check_keys(keys: Iterable[str], expected: Iterable[str], shapes: Mapping[str, object]) -> None:
    wanted = {f"{_PREFIX}{name}.lora_{side}.weight" for name in expected for side in "AB"}
    present = set(keys)
    for key in sorted(present - wanted):
        raise BadWeights(f"{ADAPTER_WEIGHTS}: {_why_unexpected(key, shapes)}")
    for key in sorted(wanted - present):
        partner = key.replace(".lora_A.", ".lora_?.").replace(".lora_B.", ".lora_?.")
        paired = any(partner.replace("?", side) in present for side in "AB")
        reason = "its partner is there" if paired else "the config names this module"
        raise BadWeights(f"{ADAPTER_WEIGHTS}: no tensor {key}, but {reason}")


def _why_unexpected(key: str, shapes: Mapping[str, object]) -> str:
    match = _KEY.fullmatch(key)
    if not key.startswith(_PREFIX):
        return f"{key}: every key must start with {_PREFIX}"
    if "lora_magnitude_vector" in key:
        return f"{key}: DoRA cannot be served"
    if "lora_embedding_" in key or ".embed_tokens." in key:
        return f"{key}: LoRA on embeddings cannot be served"
    if key.startswith(f"{_PREFIX}lm_head."):
        return f"{key}: LoRA on the output head cannot be served"
    if match is None:
        return f"{key}: neither a lora_A nor a lora_B weight"
    if match["module"] in shapes:
        return f"{key}: the config's target_modules do not name this module"
    return f"{key}: the base has no linear module {match['module']} that can carry LoRA"


def _check_shapes(file: TensorFile, name: str, shape: Shape, config: PeftLoraConfig, max_rank: int | None) -> None:
    rank = config.rank(name)
    if max_rank is not None and rank > max_rank:
        raise BadWeights(f"{name}: rank {rank} is above the allowed {max_rank}")
    wanted = {"A": (rank, shape.into), "B": (shape.out, rank)}
    for side, expected in wanted.items():
        found = file.infos[f"{_PREFIX}{name}.lora_{side}.weight"].shape
        if found != expected:
            raise BadWeights(
                f"{name}: lora_{side} has shape {list(found)}, expected {list(expected)} "
                f"(rank {rank} on a base weight of {[shape.out, shape.into]})"
            )


def _module(
    tensors: Mapping[str, torch.Tensor], hollow: frozenset[str], name: str, config: PeftLoraConfig
) -> LoraModule:
    key_a, key_b = (f"{_PREFIX}{name}.lora_{side}.weight" for side in "AB")
    if key_a in hollow and not bool(tensors[key_a].any()):
        # No training and no extraction leaves an A of zeros; a hole in the file after a power loss does.
        raise BadWeights(f"{name}: lora_A holds nothing but zeros")
    return LoraModule(name, tensors[key_a], tensors[key_b], config.scale(name))


def _config_document(scales: Mapping[str, tuple[int, float]], base_name: str) -> dict[str, object]:
    rank = Counter(rank for rank, _ in scales.values()).most_common(1)[0][0]
    alphas = {name: _alpha(name, *rank_and_scale) for name, rank_and_scale in scales.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {n: r for n, (r, _) in scales.items() if r != rank},
        "alpha_pattern": {n: a for n, a in alphas.items() if a != alpha},
        "target_modules": sorted(scales),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _alpha(name: str, rank: int, scale: float) -> float | int:
    """alpha such that alpha / r is the module's scale; whole numbers as integers, as PEFT writes them."""
    alpha = scale * rank
    if not math.isfinite(alpha):
        raise BadWeights(f"{name}: scale {scale} is not finite")
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha
