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
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch

from readapt_api.artifacts import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Manifest
from readapt_api.digest import FileEntry, entry_of
from readapt_runtime.model.family import read_dimensions, read_document
from readapt_runtime.peft_config import DORA_REFUSED, PeftLoraConfig, parse_config
from readapt_runtime.safe_tensors import (
    ADAPTER_LIMITS,
    BadWeights,
    Data,
    Header,
    TensorFile,
    TensorInfo,
    hash_tensors,
    parse_json_object,
    read_bounded,
    read_json_object,
    save_readable,
)
from readapt_runtime.tensor_stream import Entry, write_stream

_KINDS = 32
_SMALL_CONFIG = 1 << 16
"""Bytes; larger ones are not kept once they are parsed."""
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
class StoredModule:
    """Where the factors of a module lie in a file, A ``[r, in]`` and B ``[out, r]``, and the scale of their product."""

    a: TensorInfo
    b: TensorInfo
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class AdapterKind:
    """What config and header say of an adapter, held against the base; adapters of one recipe are of one kind."""

    modules: Mapping[str, StoredModule]
    """In the order of the base."""
    order: tuple[tuple[str, str], ...]
    """The factors as they lie in the file: name of the module, and ``a`` or ``b``."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredAdapter:
    """An adapter in memory as it is stored, everything checked."""

    kind: AdapterKind
    data: Data
    entries: tuple[FileEntry, FileEntry]
    """Of config and weights, as they were read."""

    @property
    def nbytes(self) -> int:
        """Of memory, as long as this or one of its tensors is there."""
        return self.data.raw.nbytes

    def flat(self) -> dict[tuple[str, str], torch.Tensor]:
        """The elements of every factor, by module and ``a`` or ``b``; views of ``data``."""
        return dict(zip(self.kind.order, self.data.flat(), strict=True))

    def modules(self) -> dict[str, LoraModule]:
        """By name, in the order of the base; views of ``data``."""
        tensors = self.data.tensors()
        found = self.kind.modules.items()
        return {name: LoraModule(name, tensors[m.a.name], tensors[m.b.name], m.scale) for name, m in found}


class AdapterReader:
    """Reads adapters of one base; what is found out about a kind is kept for the next of it. For any thread."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], max_rank: int | None = None) -> None:
        """``shapes``: module name -> (out, in)."""
        self._kind = lru_cache(maxsize=_KINDS)(partial(_kind, shapes=shapes, max_rank=max_rank))

    def read(self, folder: Path, manifest: Manifest | None = None) -> StoredAdapter:
        """The adapter in a PEFT folder; raises as ``read_adapter`` does.

        Each file is read once: what is checked, served and named are the same bytes.
        """
        content = read_bounded(folder / ADAPTER_CONFIG)
        config_entry = entry_of(content, ADAPTER_CONFIG)
        if manifest is not None:
            _require_listed(config_entry, manifest)
        config = _config(content) if len(content) <= _SMALL_CONFIG else _config.__wrapped__(content)
        with TensorFile(folder / ADAPTER_WEIGHTS, ADAPTER_LIMITS) as file:
            kind = self._kind(file.header, config)
            data = file.read_all()
        weights_entry = entry_of(data.content, ADAPTER_WEIGHTS)
        if manifest is not None:
            _require_listed(weights_entry, manifest)
        data.require_finite()
        if hollow := data.hollow(module.a for module in kind.modules.values()):
            raise _hollow(next(name for name, module in kind.modules.items() if module.a is hollow))
        return StoredAdapter(kind, data, (config_entry, weights_entry))


class AdapterFile:
    """The weights of a PEFT folder, opened; every module fits the base; a context manager."""

    def __init__(self, folder: Path, config: PeftLoraConfig, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Reads the header alone. Raises as ``read_adapter`` does."""
        self._file = TensorFile(folder / ADAPTER_WEIGHTS, ADAPTER_LIMITS)
        try:
            self.modules = _kind(self._file.header, config, shapes).modules
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> LoraModule:
        """One module. Raises BadWeights for NaN and an A of zeros, FileChanged."""
        stored = self.modules[name]
        a, b = self._file.read(stored.a.name), self._file.read(stored.b.name)
        if not bool(a.any()):
            raise _hollow(name)
        return LoraModule(name, a, b, stored.scale)

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
    return LoraAdapter(AdapterReader(shapes, max_rank).read(folder, manifest).modules())


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


@lru_cache(maxsize=_KINDS)
def _config(content: bytes) -> PeftLoraConfig:
    return parse_config(parse_json_object(content, ADAPTER_CONFIG))


def _kind(
    header: Header, config: PeftLoraConfig, shapes: Mapping[str, tuple[int, int]], max_rank: int | None = None
) -> AdapterKind:
    """Raises BadWeights unless the tensors are those that the config names, of a rank and shape that fit the base."""
    modules = [name for name in shapes if config.targets(name)]
    if not modules:
        raise BadWeights(f"{ADAPTER_CONFIG}: its target_modules match no linear module of the base")
    _check_keys(header.infos, modules, shapes)
    for name in modules:
        if max_rank is not None and config.rank(name) > max_rank:
            raise BadWeights(f"{name}: rank {config.rank(name)} is above the allowed {max_rank}")
    stored = {name: _stored(header.infos, name, Shape(*shapes[name]), config) for name in modules}
    factors = {getattr(module, side).name: (name, side) for name, module in stored.items() for side in "ab"}
    return AdapterKind(stored, tuple(factors[key] for key in header.infos))


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
        return f"{key}: {DORA_REFUSED}"
    if "lora_embedding_" in key or ".embed_tokens." in key:
        return f"{key}: LoRA on embeddings cannot be served"
    if key.startswith(f"{_PREFIX}lm_head."):
        return f"{key}: LoRA on the output head cannot be served"
    if match is None:
        return f"{key}: neither a lora_A nor a lora_B weight"
    if match["module"] in shapes:
        return f"{key}: the config's target_modules do not name this module"
    return f"{key}: the base has no linear module {match['module']} that can carry LoRA"


def _stored(infos: Mapping[str, TensorInfo], name: str, shape: Shape, config: PeftLoraConfig) -> StoredModule:
    rank = config.rank(name)
    wanted = {"A": (rank, shape.into), "B": (shape.out, rank)}
    found = {side: infos[f"{_PREFIX}{name}.lora_{side}.weight"] for side in wanted}
    for side, expected in wanted.items():
        if found[side].shape != expected:
            raise BadWeights(
                f"{name}: lora_{side} has shape {list(found[side].shape)}, expected {list(expected)} "
                f"(rank {rank} on a base weight of {[shape.out, shape.into]})"
            )
    return StoredModule(found["A"], found["B"], config.scale(name))


def _hollow(name: str) -> BadWeights:
    """No training and no extraction leaves an A of zeros; a hole in the file after a power loss does."""
    return BadWeights(f"{name}: lora_A holds nothing but zeros")


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
