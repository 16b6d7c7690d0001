"""What the library accepts and what it refuses: here all of it is refused, and cheaply."""

from __future__ import annotations

import errno
import json
import pickle
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from readapt_runtime import safe_tensors
from readapt_runtime.safe_tensors import BadWeights, Checkpoint, FileChanged, TensorFile, save_readable

TENSORS = {
    "b.weight": torch.arange(24, dtype=torch.float32).reshape(4, 6),
    "a.weight": torch.ones(6, 4, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def split(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: object, data: bytes) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def test_tensors_are_read_as_they_were_written(path: Path) -> None:
    with TensorFile(path) as file:
        assert set(file.infos) == set(TENSORS)
        for name, expected in TENSORS.items():
            found = file.read(name)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
            start = min(1, expected.numel())
            block = torch.empty(expected.numel() - start, dtype=expected.dtype)
            file.read_block(name, start, block)
            assert torch.equal(block, expected.flatten()[start:])


def read_all(path: Path) -> None:
    with TensorFile(path) as file:
        for name in file.infos:
            file.read(name)


def _truncated_tail(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _truncated_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _trailing(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def _edited(edit: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        header, data = split(path)
        edit(header)
        join(path, header, data)

    return change


def _duplicate_key(path: Path) -> None:
    header, data = split(path)
    encoded = json.dumps(header)
    join(path, (encoded[:-1] + ', "b.weight": ' + json.dumps(header["b.weight"]) + "}").encode(), data)


def _huge_length(path: Path) -> None:
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])


def _header_of_empty_tensors(path: Path) -> None:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    join(path, ("{" + ",".join(f'"t{i}":{entry}' for i in range(700_000)) + "}").encode(), b"")


def _too_many_tensors(path: Path) -> None:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    join(path, ("{" + ",".join(f'"t{i}":{entry}' for i in range(20_001)) + "}").encode().ljust(1 << 20)[: 1 << 20], b"")


def _deep_json(path: Path) -> None:
    join(path, b"[" * 500_000, b"")


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"b.weight": [1.0] * 100}))


def _not_finite(value: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in TENSORS.items()}
        tensors["b.weight"][2, 3] = value
        save_file(tensors, path)

    return change


CORRUPTIONS: dict[str, Callable[[Path], None]] = {
    "truncated tail": _truncated_tail,
    "truncated header": _truncated_header,
    "empty file": _empty,
    "trailing bytes": _trailing,
    "overlapping tensors": _edited(lambda h: h["a.weight"].update(data_offsets=[0, 48])),
    "a hole between tensors": _edited(lambda h: h.pop("a.weight")),
    "shape beyond its bytes": _edited(lambda h: h["b.weight"].update(shape=[4, 7])),
    "shape that overflows": _edited(lambda h: h["b.weight"].update(shape=[1 << 47, 1 << 47, 1 << 47])),
    "negative dimension": _edited(lambda h: h["b.weight"].update(shape=[-4, -6])),
    "five dimensions": _edited(lambda h: h["b.weight"].update(shape=[1, 1, 1, 4, 6])),
    "boolean dimension": _edited(lambda h: h["b.weight"].update(shape=[True, 24])),
    "another dtype": _edited(lambda h: h["b.weight"].update(dtype="I32")),
    "no dtype": _edited(lambda h: h["b.weight"].pop("dtype")),
    "an extra field": _edited(lambda h: h["b.weight"].update(code="x")),
    "a name that climbs": _edited(lambda h: h.update({"../../etc/passwd": h.pop("b.weight")})),
    "a name with an empty part": _edited(lambda h: h.update({"b..weight": h.pop("b.weight")})),
    "a name of 300 characters": _edited(lambda h: h.update({"b" * 300: h.pop("b.weight")})),
    "a name with NUL": _edited(lambda h: h.update({"b\0.weight": h.pop("b.weight")})),
    "duplicate key": _duplicate_key,
    "header length of 2**40": _huge_length,
    "header of 700,000 tensors": _header_of_empty_tensors,
    "too many tensors": _too_many_tensors,
    "deeply nested header": _deep_json,
    "a renamed pickle": _pickle,
    "NaN": _not_finite(float("nan")),
    "infinity": _not_finite(float("-inf")),
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_a_corrupt_file_is_refused_at_little_cost(path: Path, corrupt: Callable[[Path], None]) -> None:
    corrupt(path)
    tracemalloc.start()
    try:
        with pytest.raises(BadWeights):
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_shrinks_while_it_is_read_is_tried_again(path: Path) -> None:
    with TensorFile(path) as file:
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(FileChanged):
            file.read("b.weight")


def test_a_file_that_is_put_in_its_place_later_is_not_read(path: Path, tmp_path: Path) -> None:
    with TensorFile(path) as file:
        save_file({name: tensor * 0 for name, tensor in TENSORS.items()}, tmp_path / "other")
        (tmp_path / "other").replace(path)
        assert torch.equal(file.read("b.weight"), TENSORS["b.weight"])


def test_large_finite_values_whose_sum_overflows_are_accepted(tmp_path: Path) -> None:
    tensor = torch.full((64,), 60_000.0, dtype=torch.float16)
    save_file({"w": tensor}, tmp_path / "f")
    with TensorFile(tmp_path / "f") as file:
        assert torch.equal(file.read("w"), tensor)


def shard(folder: Path, weight_map: dict[str, str]) -> None:
    for file in set(weight_map.values()):
        save_file(
            {n: TENSORS[n] for n, f in weight_map.items() if f == file and n in TENSORS}, folder / Path(file).name
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_read_as_one(tmp_path: Path) -> None:
    shard(tmp_path, {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"})
    with Checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.infos) == {"a.weight", "b.weight"}
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in checkpoint.tensors())
        with pytest.raises(BadWeights, match="no tensor c"):
            checkpoint.read("c")


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a.weight": "model-1.safetensors", "c.weight": "model-1.safetensors"},
        {"a.weight": "../model-1.safetensors"},
        {"a.weight": "/etc/model.safetensors"},
        {"a.weight": "pytorch_model.bin"},
        {},
    ],
    ids=["a tensor that no shard has", "climbing shard", "absolute shard", "pickle shard", "empty index"],
)
def test_an_index_that_does_not_match_its_shards_is_refused(tmp_path: Path, weight_map: dict[str, str]) -> None:
    shard(tmp_path, weight_map)
    with pytest.raises(BadWeights):
        Checkpoint(tmp_path)


def test_a_tensor_beyond_the_index_is_refused(tmp_path: Path) -> None:
    shard(tmp_path, {"a.weight": "model-1.safetensors"})
    save_file(TENSORS, tmp_path / "model-1.safetensors")
    with pytest.raises(BadWeights, match="disagree"):
        Checkpoint(tmp_path)


def test_a_folder_of_pickles_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(BadWeights, match=r"pytorch_model\.bin is a pickle"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block", [1, 5, 1 << 20], ids=lambda elements: f"blocks of {elements}")
def test_tensors_are_read_into_their_place_in_its_dtype(
    path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int
) -> None:
    monkeypatch.setattr(safe_tensors, "_READ_BLOCK", block)
    with TensorFile(path) as file:
        for name, stored in TENSORS.items():
            whole = torch.full((stored.shape[0] + 2, stored.shape[1]), 7.0, dtype=dtype)
            file.read_into(name, whole[1:-1])
            assert torch.equal(whole[1:-1], stored.to(dtype))
            assert bool((whole[0] == 7).all())
            assert bool((whole[-1] == 7).all())


def test_a_place_of_another_shape_is_a_bug_that_shows(path: Path) -> None:
    with TensorFile(path) as file, pytest.raises(ValueError, match=r"b\.weight .*\[4, 6\].*\[6, 4\]"):
        file.read_into("b.weight", torch.empty(6, 4))


def test_values_that_are_not_finite_are_refused_in_their_place_too(tmp_path: Path) -> None:
    save_file({"x": torch.tensor([1.0, float("inf")])}, tmp_path / "x.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        with TensorFile(tmp_path / "x.safetensors") as file, pytest.raises(BadWeights, match="x: NaN or infinite"):
            file.read_into("x", torch.empty(2, dtype=dtype))


@pytest.mark.parametrize("padding", range(8))
def test_all_tensors_at_once_are_those_one_by_one_wherever_they_lie(tmp_path: Path, padding: int) -> None:
    """A header of any length shifts the data; a half-precision tensor of odd size shifts what follows it."""
    odd = torch.tensor([1.5], dtype=torch.bfloat16)
    whole = {"a": torch.arange(3.0), "b": odd, "c": torch.arange(4.0).reshape(2, 2)}
    header, data, at = {}, b"", 0
    for name, tensor in whole.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        kind = "BF16" if tensor.dtype == torch.bfloat16 else "F32"
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + len(raw)]}
        data, at = data + raw, at + len(raw)
    join(tmp_path / "f", json.dumps(header).encode() + b" " * padding, data)
    with TensorFile(tmp_path / "f") as file:
        data = file.read_all()
    found = data.tensors()
    assert bytes(data.content) == (tmp_path / "f").read_bytes()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in whole.items())


def test_all_tensors_at_once_are_finite_and_the_one_that_is_not_is_named(tmp_path: Path) -> None:
    save_file({"fine": torch.full((8,), 3e38), "x": torch.tensor([1.0, float("nan")])}, tmp_path / "x.safetensors")
    with TensorFile(tmp_path / "x.safetensors") as file, pytest.raises(BadWeights, match="x: NaN or infinite"):
        file.read_all().require_finite()
    save_file({"large": torch.full((8,), 3e38)}, tmp_path / "large.safetensors")
    with TensorFile(tmp_path / "large.safetensors") as file:
        file.read_all().require_finite()  # a sum that overflows is no infinity


def test_a_write_that_the_system_refuses_keeps_the_number_of_its_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="weights") as refused:
            save_readable(tmp_path / "weights", {"a": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.errno == errno.EFBIG
