"""Triton's C module for CUDA, compiled ahead: what serves has no C compiler.

    python -m readapt_kernels.triton_driver FOLDER

Triton compiles one module, which loads and launches kernels, when a kernel is launched first. Images hold it beside
this file, for their Python. Here it is linked without a driver: against an empty library that has the driver's name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
MODULE = "cuda_utils"
_DRIVER = "libcuda.so.1"


class NotCompiled(RuntimeError):
    """No C compiler, no headers of Python, or the compiler failed."""


def module_file() -> str:
    """Changes with Triton's source and with the version of Python."""
    source = hashlib.sha256(_source().read_bytes()).hexdigest()[:12]
    return f"{MODULE}-{source}{sysconfig.get_config_var('EXT_SUFFIX')}"


def compile_module(folder: Path) -> Path:
    """The module for the Python that runs this, in ``folder``; raises NotCompiled."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise NotCompiled("no C compiler (gcc) is installed")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / module_file()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        driver, made = Path(scratch) / _DRIVER, Path(scratch) / target.name
        _run(compiler, "-shared", f"-Wl,-soname,{_DRIVER}", "-x", "c", os.devnull, "-o", str(driver))
        includes = (f"-I{_source().parent / 'include'}", f"-I{sysconfig.get_path('include')}")
        options = ("-O3", "-s", "-shared", "-fPIC", "-Wno-psabi", *includes)
        link = (f"-L{scratch}", "-Wl,--no-as-needed", f"-l:{_DRIVER}")
        _run(compiler, *options, str(_source()), "-o", str(made), *link)
        made.replace(target)
    return target


def use_compiled(folder: Path = HERE) -> None:
    """Triton takes the module in ``folder`` where it has no compiler; nothing changes where none was made for it."""
    module = folder / module_file()
    if module.is_file() and not any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang"))):
        from triton import knobs

        knobs.build.impl = lambda name, *_: _take(name, module)


def _take(name: str, module: Path) -> str:
    if name != MODULE:
        raise NotCompiled(f"Triton wants to compile {name}, and there is no C compiler")
    return str(module)


def _source() -> Path:
    """Read without importing Triton, which would look for a GPU."""
    found = find_spec("triton")
    if found is None or found.origin is None:
        raise NotCompiled("Triton is not installed")
    return Path(found.origin).parent / "backends" / "nvidia" / "driver.c"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotCompiled(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")


def main() -> int:
    """0, or 1 with the reason on stderr."""
    try:
        sys.stdout.write(f"{compile_module(Path(sys.argv[1]))}\n")
    except NotCompiled as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
