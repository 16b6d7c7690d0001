"""How tests run Triton without a GPU: interpreted in this process, compiled in another one.

``@triton.jit`` decides at decoration, and Triton decorates its own library when it is imported, so that a process is
either interpreting or compiling. Importing this module makes the test process interpret (the plugin does it before
anything imports Triton); ``TRITON_INTERPRET=0`` in the environment leaves it compiling, for a machine with a GPU.
``compiled`` sends launches that ``recorded`` caught to ``triton_compiler`` in a process of its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from readapt_cluster.places import cache

_asked = os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETED = _asked.lower() in {"1", "true", "yes", "on"}
DEVICE = "cpu" if INTERPRETED else "cuda"


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch as the compiler sees it: types, known multiples of 16, constants, options."""

    module: str
    kernel: str
    signature: dict[str, str]
    multiples_of_16: list[str]
    constants: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of a launch on sm_90."""

    ttir: str
    ptx: str
    registers: int
    spill_bytes: int
    shared_bytes: int


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches inside are noted and not run. Needs the interpreting process; tensors may have any dtype."""
    interpreted = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
    launches: list[Launch] = []
    original = interpreted.run

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = self.arg_names
        options = {key: value for key, value in kwargs.items() if key not in names}
        given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
        launches.append(_launch(self.fn, given, options))

    interpreted.run = note
    try:
        yield launches
    finally:
        interpreted.run = original


@contextmanager
def programs_in_order(order: Sequence[int]) -> Iterator[None]:
    """Interpreted launches inside run program ``order[i]`` of the first axis as the i-th, as a GPU might."""
    builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
    original = builder.set_grid_idx
    builder.set_grid_idx = lambda x, y, z: original(order[x] if x < len(order) else x, y, z)
    try:
        yield
    finally:
        builder.set_grid_idx = original


def compiled(launches: Sequence[Launch]) -> list[Compiled]:
    """Compiles for sm_90 with the assembler that Triton carries; no GPU and no driver are needed."""
    asked = json.dumps([asdict(launch) for launch in launches])
    return [Compiled(**result) for result in json.loads(compiled_by("readapt_testing.triton_compiler", asked))]


def compiled_by(module: str, asked: str = "") -> str:
    """The last line that the compiling process ``module`` says to ``asked``.

    Kept in the cache folder: the same kernels, compiler and question have the same answer.
    """
    name = hashlib.sha256("\0".join([module, asked, metadata.version("triton"), *_sources()]).encode()).hexdigest()
    kept = cache() / "fixtures" / "compiled" / name[:16]
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            answer = Path(scratch) / "answer"
            answer.write_text(_compile(module, asked), encoding="utf-8")
            answer.rename(kept)
    return kept.read_text(encoding="utf-8")


def _compile(module: str, asked: str) -> str:
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", module]
    done = subprocess.run(
        command, input=asked, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode != 0:
        raise RuntimeError(f"compilation failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def _sources() -> list[str]:
    """What the compiled code follows from: the kernels, their launchers, and the compiling processes."""
    spec = importlib.util.find_spec("readapt_kernels")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("readapt_kernels")
    kernels = (file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.py"))
    here = (Path(__file__).with_name(name) for name in ("sm90.py", "triton_compiler.py", "triton_modes.py"))
    return [file.read_text(encoding="utf-8") for file in (*sorted(kernels), *here)]


def _launch(function: Any, given: dict[str, Any], options: dict[str, int]) -> Launch:
    """Specialised as Triton's launcher would: 1 and constexpr are constants, multiples of 16 are known."""
    signature: dict[str, str] = {}
    multiples: list[str] = []
    constants: dict[str, Any] = {}
    for name, value in given.items():
        annotation = str(function.__annotations__.get(name, ""))
        if "constexpr" in annotation or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[name] = value
        elif hasattr(value, "data_ptr"):
            signature[name] = "*" + _POINTEES[str(value.dtype).removeprefix("torch.")]
            multiples += [name] * (value.data_ptr() % 16 == 0)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            multiples += [name] * (value % 16 == 0)
    return Launch(function.__module__, function.__name__, signature, multiples, constants, options)


_POINTEES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
}
