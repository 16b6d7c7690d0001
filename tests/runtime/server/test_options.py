"""What the command line may say, and what is refused before anything is loaded."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from readapt_api.digest import digest_of
from readapt_api.serving import DesiredAdapter
from readapt_runtime.device import BadDevice
from readapt_runtime.engine.core import NonFiniteLogits
from readapt_runtime.server.command import parse_adapters
from readapt_runtime.server.limits import BadLimits, Limits, parse_memory
from readapt_runtime.server.names import BadName
from readapt_runtime.server.startup import BadOptions, Options, _largest_adapter, build
from readapt_testing.damage import tensors
from readapt_testing.serving import serving
from readapt_testing.tiny_engine import Tiny


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4Gi", 4 << 30),
        ("512Mi", 512 << 20),
        ("64Ki", 64 << 10),
        ("0.5Ti", 1 << 39),
        ("7", 7),
        ("4G", 4_000_000_000),
        ("1.5Gi", 1_610_612_736),
        ("4000M", 4_000_000_000),
        ("3k", 3000),
        ("2T", 2_000_000_000_000),
        ("0.0001Ki", 1),
    ],
)
def test_memory_is_a_kubernetes_quantity(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "-1Gi", "Gi", "0", "0.0Gi", "500m", "1e3", "4g", "4GiB", "1.Gi", " 4Gi", "4Gi\n", "٣"]
)
def test_other_amounts_of_memory_are_refused(text: str) -> None:
    with pytest.raises(BadLimits):
        parse_memory(text)


def test_limits_must_be_positive() -> None:
    with pytest.raises(BadLimits, match="max_rank"):
        Limits(max_rank=0)
    assert Limits(max_model_len=2048).within(512).max_model_len == 512


def test_adapters_are_name_and_folder() -> None:
    assert parse_adapters(["a=/x", "b=/y=z"]) == {"a": Path("/x"), "b": Path("/y=z")}
    for bad in (["a"], ["=x"], ["a="], ["a=x", "a=y"]):
        with pytest.raises(BadLimits):
            parse_adapters(bad)


@pytest.mark.parametrize("name", ["ключ", "a\nX-Evil: 1", "a b", "-a", "a.", "é", "x" * 64, "a/b"], ids=repr)
def test_names_that_no_header_can_carry_are_refused(name: str) -> None:
    """The pattern is that of ``servedName`` in the resource."""
    with pytest.raises(BadName, match=r"--adapter: .* is no name; allowed are 1 to 63 of A-Z"):
        parse_adapters([f"{name}=/x"])
    with pytest.raises(BadName, match="--served-name"):
        Options(base=BASE, served_name=name)
    with pytest.raises(BadName, match="--revision"):
        Options(base=BASE, served_name="tiny", revision=name)
    with pytest.raises(ValidationError):
        DesiredAdapter(name=name, digest=digest_of("x"))


def test_names_of_resources_are_taken() -> None:
    name = "Qwen2.5-7B_instruct"
    assert parse_adapters([f"{name}=/x"]) == {name: Path("/x")}
    assert Options(base=BASE, served_name=name, revision="x" * 63).served_name == name


BASE = Path("base")
CONTRADICTIONS: dict[str, dict[str, object]] = {
    "folders and a store": {"adapters": {"a": BASE}, "store": BASE},
    "a set without a store": {"set_dir": BASE},
    "a key without the base that it is to sign for": {"admin_public_key": BASE},
    "two models of one name": {"adapters": {"tiny": BASE}},
}


@pytest.mark.parametrize("options", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_options_that_contradict_each_other_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadOptions):
        Options(base=BASE, served_name="tiny", **options)  # type: ignore[arg-type]


def test_what_does_not_fit_the_folder_is_refused(tiny: Tiny) -> None:
    options = Options(base=tiny.base, served_name="tiny")
    with pytest.raises(BadOptions, match="--base-digest"):
        build(replace(options, base_digest=digest_of("another base")))
    with pytest.raises(BadOptions, match="--dtype"):
        build(replace(options, dtype="int3"))
    with pytest.raises(BadDevice, match="--device"):
        build(replace(options, device="cpu:nonsense"))


def test_a_base_whose_numbers_overflow_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny.base, tmp_path / "base"))
    tensors(lambda t: t["model.norm.weight"].fill_(3e38))(base)
    with pytest.raises(
        NonFiniteLogits, match=r"the base answers NaN or infinity when it is computed in torch\.float32"
    ):
        build(Options(base=base, served_name="tiny"))


def test_a_port_that_is_taken_is_a_clear_error(tiny: Tiny) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = Options(base=tiny.base, served_name="tiny", port=taken.getsockname()[1], admin_port=0)
        with pytest.raises(BadOptions, match="cannot listen"), serving(options):
            pass


def test_the_host_has_room_for_two_of_the_largest_adapters_where_nothing_else_is_said(tiny: Tiny) -> None:
    image = tiny.variant("r64").image
    largest = _largest_adapter(tiny.config, 64, torch.float32)
    pages = image.read().here
    assert pages.nbytes * 0.9 <= largest <= pages.nbytes
    assert Limits().host_room(largest) == 96 << 20
    assert Limits().host_room(80 << 20) == 160 << 20
    assert Limits(host_bytes=1000).host_room(80 << 20) == 1000
