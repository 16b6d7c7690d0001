"""Reading weights that somebody else wrote.

In: a ``*.safetensors`` file, or a checkpoint folder of them. Out: named, shaped, finite tensors, one at a time. Next:
``lora_format`` and the Jobs. The library accepts duplicate keys, odd names and headers of any size, so the header is
parsed and judged here before a byte of data is used; ``.bin`` and other pickles are never opened.

Tensors are read with ``pread`` into memory of their own rather than mapped: a mapped file that shrinks kills the
process with SIGBUS, a short read is an error that names the file, and one tensor at a time is all that is resident.
``read_into`` reads into memory that is there already, so that loading a model holds one copy of it; measured on 256 MB
of bf16 it is as fast as mapping and copying (0.22 s and 0.24 s), which touches every page once more.

    BadWeights     Terminal   what is in the file cannot be trusted or does not fit
    FileChanged    Transient  the file changed while it was being read
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from readapt_api.errors import Terminal, Transient
from readapt_runtime.recycled_memory import ADAPTER_MEMORY

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PACKED = ("I", "U", "F8", "F4")
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*(\.[A-Za-z0-9_\-]+)*")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")
_OS_ERROR = re.compile(r"\(os error (?P<number>\d+)\)")
"""In the library's text."""
_FINITE_BLOCK = 1 << 22
_READ_BLOCK = 1 << 21
"""Elements."""
ALIGNMENT = 8
"""Bytes; of every element that may be stored."""


class BadWeights(Terminal):
    """Weights that are damaged, of the wrong shape or type, or not what they claim to be."""


class FileChanged(Transient):
    """A file changed while it was being read."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one safetensors file may cost before it is refused."""

    file_bytes: int
    tensors: int
    header_bytes: int = 1 << 20
    name_length: int = 256
    dimensions: int = 4


CHECKPOINT_LIMITS = Limits(file_bytes=64 << 30, tensors=20_000)
ADAPTER_LIMITS = Limits(file_bytes=4 << 30, tensors=20_000)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a header; ``begin`` and ``end`` are bytes from the start of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """What a file says of its contents. Files of one kind, read one after the other, share theirs."""

    infos: Mapping[str, TensorInfo]
    """In the order of the data, without holes."""
    metadata: Mapping[str, object]
    """As it is written, unchecked."""
    end: int
    """Bytes of the whole file."""


class TensorFile:
    """One open safetensors file whose header has been checked; a context manager."""

    def __init__(self, path: Path, limits: Limits = CHECKPOINT_LIMITS) -> None:
        """Opens ``path`` and checks its header. Raises BadWeights; a missing file is BadWeights too."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise BadWeights(f"{path}: no such file") from None
        try:
            self.header = _read_header(self._descriptor, path.name, limits)
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in the order of the data."""
        return self.header.infos

    @property
    def metadata(self) -> Mapping[str, object]:
        """See ``Header``."""
        return self.header.metadata

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored: its shape and dtype, finite. Raises BadWeights, FileChanged."""
        info = self._info(name)
        raw = torch.empty(info.end - info.begin, dtype=torch.uint8)
        _read_into(self._descriptor, raw.numpy().data, info.begin, self.path.name)
        tensor = raw.view(info.dtype).reshape(info.shape)
        require_finite(tensor, f"{self.path.name}: {name}")
        return tensor

    def read_all(self) -> Data:
        """The whole file, once, as it is. Raises FileChanged."""
        infos = tuple(self.infos.values())
        pad = -(infos[0].begin if infos else 0) % ALIGNMENT
        raw = ADAPTER_MEMORY.allocate(pad + self.header.end)[pad:]
        _read_into(self._descriptor, raw.numpy().data, 0, self.path.name)
        return Data(self.path.name, infos, raw)

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Fills ``out``, contiguous and of the tensor's shape, in its own dtype on its own device, a block at a time.

        No copy of the tensor is made: bytes that need no conversion go from the file into ``out``. The values are
        finite, before and after conversion. Raises BadWeights, FileChanged.
        """
        info = self._info(name)
        if tuple(out.shape) != info.shape:
            raise ValueError(f"{name} of {list(info.shape)} has no place in {list(out.shape)}")
        direct = out.dtype == info.dtype and out.device.type == "cpu"
        staging = torch.empty(0 if direct else min(_READ_BLOCK, info.elements), dtype=info.dtype)
        begin = info.begin
        for place in torch.split(out.view(-1), _READ_BLOCK):
            block = place if direct else staging[: place.numel()]
            _read_into(self._descriptor, block.view(torch.uint8).numpy().data, begin, self.path.name)
            begin += block.nbytes
            require_finite(block, f"{self.path.name}: {name}")
            if not direct:
                require_finite(place.copy_(block), f"{self.path.name}: {name} as {out.dtype}")

    def read_window(self, name: str, out: torch.Tensor, row: int, column: int) -> None:
        """Fills ``out`` ``[rows, columns]``, of any strides, with the matrix from (row, column) on.

        A vector is a matrix of one column. Whole rows pass through a block of some megabytes; all that is read is
        finite. Raises BadWeights, FileChanged.
        """
        info = self._info(name)
        width = math.prod(info.shape[1:])
        if (row + out.shape[0]) * width > info.elements or column + out.shape[1] > width:
            raise ValueError(f"{name} of {list(info.shape)} has no {list(out.shape)} at {row}, {column}")
        begin = info.begin + row * width * info.dtype.itemsize
        for place in torch.split(out, max(1, _READ_BLOCK // width)):
            block = torch.empty(len(place), width, dtype=info.dtype)
            _read_into(self._descriptor, block.view(-1).view(torch.uint8).numpy().data, begin, self.path.name)
            begin += block.nbytes
            require_finite(block, f"{self.path.name}: {name}")
            place.copy_(block[:, column : column + out.shape[1]])
            require_finite(place, f"{self.path.name}: {name} as {out.dtype}")

    def read_block(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fills ``out`` [k], contiguous and in the tensor's own dtype, with its elements from ``start`` on.

        For readers that look at every value anyway: what is read may be NaN. Raises BadWeights, FileChanged.
        """
        info = self._info(name)
        if start + out.numel() > info.elements or out.dtype != info.dtype:
            raise ValueError(f"{name} of {list(info.shape)} has no {out.numel()} {out.dtype} from {start} on")
        at = info.begin + start * info.dtype.itemsize
        _read_into(self._descriptor, out.view(torch.uint8).numpy().data, at, self.path.name)

    def close(self) -> None:
        os.close(self._descriptor)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.infos:
            raise BadWeights(f"{self.path.name}: no tensor {name}")
        return self.infos[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Data:
    """A file in memory: a file that is put in its place meanwhile changes nothing."""

    name: str
    infos: tuple[TensorInfo, ...]
    raw: torch.Tensor
    """uint8; the first byte of the first tensor lies at a multiple of 8."""

    @property
    def content(self) -> memoryview:
        """Its bytes."""
        return self.raw.numpy().data

    def hollow(self, infos: Iterable[TensorInfo]) -> TensorInfo | None:
        """The first that holds nothing but zeros, as one in a hole of the file does."""
        content = self.content
        heads = ((info, content[info.begin : min(info.end, info.begin + ALIGNMENT)]) for info in infos)
        return next((info for info, head in heads if not any(head) and not bool(self._flat((info,)).any())), None)

    def require_finite(self) -> None:
        """Raises BadWeights naming a tensor with a NaN or an infinity."""
        for run in self._runs():
            # tensor by tensor takes many times as long
            if not bool(torch.isfinite(self._flat(run).sum())):
                for info in run:
                    require_finite(self._flat((info,)), f"{self.name}: {info.name}")

    def flat(self) -> list[torch.Tensor]:
        """The elements of every tensor, as stored, NaN or not, in the order of ``infos``: views of one buffer."""
        return [p for run in self._runs() for p in torch.split(self._flat(run), [info.elements for info in run])]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The same by name, in their shapes."""
        found = zip(self.infos, self.flat(), strict=True)
        return {info.name: elements.view(info.shape) for info, elements in found}

    def _runs(self) -> Iterator[tuple[TensorInfo, ...]]:
        """Neighbours of one dtype."""
        for _, run in groupby(self.infos, key=lambda info: info.dtype):
            yield tuple(run)

    def _flat(self, run: Sequence[TensorInfo]) -> torch.Tensor:
        """The elements of neighbours; a copy where they lie between the multiples of their size."""
        dtype, part = run[0].dtype, self.raw[run[0].begin : run[-1].end]
        return (part if part.storage_offset() % dtype.itemsize == 0 else part.clone()).view(dtype)


class Checkpoint:
    """The safetensors files of a model folder, single or sharded, as one mapping of tensors; a context manager."""

    def __init__(self, folder: Path, limits: Limits = CHECKPOINT_LIMITS) -> None:
        """Opens every shard and checks that the index and the shards agree. Raises BadWeights."""
        self.folder = folder
        self._files: dict[str, TensorFile] = {}
        with ExitStack() as stack:
            for shard, expected in _shards(folder).items():
                file = stack.enter_context(TensorFile(folder / shard, limits))
                if expected is not None and set(file.infos) != expected:
                    odd = sorted(expected ^ set(file.infos))[0]
                    raise BadWeights(f"{INDEX_FILE} and {shard} disagree about tensor {odd}")
                self._files |= dict.fromkeys(file.infos, file)
            self._stack = stack.pop_all()
        self.infos: Mapping[str, TensorInfo] = {name: file.infos[name] for name, file in self._files.items()}
        """Every tensor of the checkpoint, by name."""

    def read(self, name: str) -> torch.Tensor:
        """See ``TensorFile.read``."""
        return self._file(name).read(name)

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """See ``TensorFile.read_into``."""
        self._file(name).read_into(name, out)

    def read_window(self, name: str, out: torch.Tensor, row: int, column: int) -> None:
        """See ``TensorFile.read_window``."""
        self._file(name).read_window(name, out, row, column)

    def read_block(self, name: str, start: int, out: torch.Tensor) -> None:
        """See ``TensorFile.read_block``."""
        self._file(name).read_block(name, start, out)

    def file_of(self, name: str) -> str:
        """The name of the file that a tensor lies in."""
        return self._file(name).path.name

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor, in the order of the files, so that disks read forwards."""
        for name, file in self._files.items():
            yield name, file.read(name)

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            raise BadWeights(f"{self.folder.name}: no tensor {name}")
        return self._files[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


def save_readable(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes ``tensors``; the library's files are for their owner alone, but serving pods run as another user.

    Raises OSError, where the library has one error for a full disk and for a bug of the caller.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found["number"])
        raise OSError(number, os.strerror(number), str(path)) from error
    path.chmod(0o644)


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values, whatever the order and the strides."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def require_finite(tensor: torch.Tensor, what: str) -> None:
    """Raises BadWeights when there is a NaN or an infinity; block by block, so that memory stays small."""
    flat = tensor.flatten()
    for start in range(0, flat.numel(), _FINITE_BLOCK):
        block = flat[start : start + _FINITE_BLOCK]
        # A sum is 30 times faster and carries every NaN and infinity; only when it is not finite, which finite
        # values can cause by overflow, does the slow test decide.
        if not bool(torch.isfinite(block.sum())) and not bool(torch.isfinite(block).all()):
            raise BadWeights(f"{what}: NaN or infinite values")


def read_json_object(path: Path, limit: int = 4 << 20) -> dict[str, object]:
    """A JSON object out of a file of bounded size. Raises BadWeights naming the file."""
    return parse_json_object(read_bounded(path, limit), str(path))


def read_bounded(path: Path, limit: int = 4 << 20) -> bytes:
    """The bytes of a file of bounded size. Raises BadWeights naming the file."""
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except FileNotFoundError:
        raise BadWeights(f"{path}: no such file") from None
    if len(content) > limit:
        raise BadWeights(f"{path}: larger than {limit} bytes")
    return content


def parse_json_object(content: bytes, name: str) -> dict[str, object]:
    """Raises BadWeights naming the file for anything but a JSON object without a key twice."""
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise BadWeights(f"{name}: not the JSON that it should hold: {str(error)[:120]}") from error
    if not isinstance(document, dict):
        raise BadWeights(f"{name}: not a JSON object")
    return document


def _shards(folder: Path) -> Mapping[str, set[str] | None]:
    """File name -> the tensors that the index puts there; None for a single file without an index."""
    if (folder / SINGLE_FILE).is_file() and not (folder / INDEX_FILE).exists():
        return {SINGLE_FILE: None}
    if not (folder / INDEX_FILE).is_file():
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        hint = f" ({pickles[0]} is a pickle, which is never read)" if pickles else ""
        raise BadWeights(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    weight_map = read_json_object(folder / INDEX_FILE, 16 << 20).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadWeights(f"{INDEX_FILE}: no weight_map")
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise BadWeights(f"{INDEX_FILE}: {shard!r} is no name of a shard")
        shards.setdefault(shard, set()).add(name)
    return dict(shards)


def _read_header(descriptor: int, name: str, limits: Limits) -> Header:
    """Header and data sizes add up, no key twice, offsets without holes or overlaps, known names and dtypes."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise BadWeights(f"{name}: no regular file")
    if not 8 <= status.st_size <= limits.file_bytes:
        raise BadWeights(f"{name}: {status.st_size} bytes, allowed are 8 to {limits.file_bytes}")
    length = int.from_bytes(_read_exactly(descriptor, 8, 0, name), "little")
    if not 2 <= length <= limits.header_bytes:
        raise BadWeights(f"{name}: a header of {length} bytes; allowed are 2 to {limits.header_bytes}")
    if length > status.st_size - 8:
        raise BadWeights(f"{name}: {status.st_size} bytes, but its header alone has {length} (truncated?)")
    header = _parse_header(_read_exactly(descriptor, length, 8, name), name, limits)
    if header.end != status.st_size:
        raise BadWeights(f"{name}: {status.st_size} bytes, but the header describes {header.end} (truncated?)")
    return header


@lru_cache(maxsize=32)
def _parse_header(content: bytes, name: str, limits: Limits) -> Header:
    header = parse_json_object(content, name)
    metadata = header.pop("__metadata__", None)
    if len(header) > limits.tensors:
        raise BadWeights(f"{name}: {len(header)} tensors, allowed are {limits.tensors}")
    position = 8 + len(content)
    infos = sorted((_info(name, key, value, position, limits) for key, value in header.items()), key=_extent)
    for info in infos:
        if info.begin != position:
            raise BadWeights(f"{name}: the data of {info.name} does not follow what is before it")
        position = info.end
    described = MappingProxyType({info.name: info for info in infos})
    return Header(described, MappingProxyType(metadata if isinstance(metadata, dict) else {}), position)


def _extent(info: TensorInfo) -> tuple[int, int]:
    return (info.begin, info.end)


def _info(file: str, key: str, value: object, data: int, limits: Limits) -> TensorInfo:
    if len(key) > limits.name_length or not _NAME.fullmatch(key):
        raise BadWeights(f"{file}: {key[:80]!r} is no name of a tensor")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise BadWeights(f"{file}: {key}: not a tensor's description")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        packed = " (quantised or packed weights are not read)" if str(dtype).startswith(_PACKED) else ""
        raise BadWeights(f"{file}: {key}: dtype {str(dtype)[:16]}; allowed are {', '.join(DTYPES)}{packed}")
    if not _are_sizes(shape) or len(shape) > limits.dimensions or not _are_sizes(offsets) or len(offsets) != 2:
        raise BadWeights(f"{file}: {key}: impossible shape or offsets")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise BadWeights(f"{file}: {key}: shape {shape} does not fill its bytes")
    return TensorInfo(key, DTYPES[dtype], tuple(shape), data + offsets[0], data + offsets[1])


def _are_sizes(values: object) -> bool:
    """A list of non-negative integers, none of them so large that products grow without bound."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {key[:80]!r} appears more than once")
    return document


def _read_exactly(descriptor: int, size: int, offset: int, name: str) -> bytes:
    buffer = bytearray(size)
    _read_into(descriptor, memoryview(buffer), offset, name)
    return bytes(buffer)


def _read_into(descriptor: int, target: memoryview, offset: int, name: str) -> None:
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if count == 0:
            raise FileChanged(f"{name}: became shorter while it was being read")
        done += count
