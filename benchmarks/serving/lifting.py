"""The LoRA kernels of vLLM 0.33 and SGLang 0.5.23, loaded by path out of unpacked wheels, with stubs for the rest.

Nothing of these packages is installed or copied: ``pip download --no-deps`` and ``unzip`` a wheel, pass the folder.
The files import a handful of names from their packages; the stubs below answer as on an H100 or H200.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl

HOPPER = 90


class NotLiftable(Exception):
    """A folder that is no unpacked wheel of the version that this script knows."""


@dataclass(frozen=True, slots=True)
class VllmOps:
    """Modules of ``vllm/lora/ops/triton_ops``."""

    shrink: Any
    expand: Any
    metadata: Any
    tables: Any
    """``utils.py``: default configurations and the pointer tables, which are keyed by address."""


@dataclass(frozen=True, slots=True)
class SglangOps:
    """Modules of ``sglang/kernels/ops/lora/dense``."""

    shrink: Any
    expand: Any
    tables: Any
    """``lora_tuning_config.py``: default and tuned configurations."""


def lift_vllm(root: Path) -> VllmOps:
    """Raises NotLiftable."""
    package = "vllm.lora.ops.triton_ops"
    with _stubbed(_vllm_stubs(), _parents(package)):
        utils = _load(root, f"{package}.utils")
        _load(root, f"{package}.kernel_utils")
        names = ("lora_shrink_op", "lora_expand_op", "lora_kernel_metadata")
        shrink, expand, metadata = (_load(root, f"{package}.{name}") for name in names)
    return VllmOps(shrink, expand, metadata, utils)


def lift_sglang(root: Path) -> SglangOps:
    """Raises NotLiftable."""
    package = "sglang.kernels.ops.lora.dense"
    with _stubbed(_sglang_stubs(), _parents(package)):
        tables = _load(root, f"{package}.lora_tuning_config")
        names = ("chunked_sgmv_shrink", "chunked_sgmv_expand")
        shrink, expand = (_load(root, f"{package}.{name}") for name in names)
    return SglangOps(shrink, expand, tables)


def _vllm_stubs() -> dict[str, Mapping[str, Any]]:
    platform = SimpleNamespace(
        is_cuda=lambda: True,
        has_device_capability=lambda wanted: wanted <= HOPPER,
        is_device_capability=lambda wanted: wanted == HOPPER,
    )
    flags = SimpleNamespace(
        VLLM_BATCH_INVARIANT=False,
        VLLM_TUNED_CONFIG_FOLDER=None,
        VLLM_LORA_ENABLE_DUAL_STREAM=False,
        VLLM_LORA_DISABLE_PDL=False,
    )
    return {
        "vllm": {"envs": flags},
        "vllm.logger": {"init_logger": _quiet_logger},
        "vllm.platforms": {"current_platform": platform},
        "vllm.triton_utils": {"tl": tl, "triton": triton},
        "vllm.utils": {},
        "vllm.utils.math_utils": {"next_power_of_2": triton.next_power_of_2},
        "vllm.utils.torch_utils": {"async_tensor_h2d": torch.tensor, "direct_register_custom_op": _no_custom_op},
    }


def _sglang_stubs() -> dict[str, Mapping[str, Any]]:
    off = SimpleNamespace(get=lambda: False)
    flags = SimpleNamespace(SGLANG_ENABLE_DETERMINISTIC_INFERENCE=off, SGLANG_ENABLE_LORA_CSGMV_SPLIT_K=off)
    return {
        "sglang.srt": {},
        "sglang.srt.environ": {"envs": flags},
        "sglang.srt.utils": {"cached_triton_kernel": _identity, "get_device_name": _device_name},
        "sglang.srt.lora": {},
        "sglang.srt.lora.utils": {"LoRABatchInfo": object},
    }


def _identity(key: object) -> Callable[[Any], Any]:
    return lambda kernel: kernel


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _no_custom_op(**told: object) -> None:
    raise AttributeError("the files fall back to their plain functions")


def _quiet_logger(name: str) -> SimpleNamespace:
    debug = logging.getLogger(name).debug
    return SimpleNamespace(warning_once=debug, info_once=debug)


def _parents(package: str) -> list[str]:
    parts = package.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


@contextmanager
def _stubbed(stubs: Mapping[str, Mapping[str, Any]], packages: list[str]) -> Iterator[None]:
    """The stubs and empty packages are in ``sys.modules`` while files load, and gone afterwards."""
    wanted = {**{package: {} for package in packages}, **stubs}
    before = {name: sys.modules[name] for name in list(sys.modules) if name.partition(".")[0] in ("vllm", "sglang")}
    for name in before:
        del sys.modules[name]
    for name, contents in wanted.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(contents)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("vllm", "sglang")]:
            del sys.modules[name]
        sys.modules.update(before)


def _load(root: Path, name: str) -> ModuleType:
    path = root.joinpath(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise NotLiftable(f"{path} is not there: unpack the wheel and pass its folder")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
