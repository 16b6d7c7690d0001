"""Compiles the C++ kernels: ``python -m readapt_kernels.cpu.build [FOLDER]``.

Images hold the libraries beside the sources. Elsewhere the first server that finds a compiler builds them into the
cache folder (``READAPT_CACHE``), named by a hash of sources and flags; a build that is under way elsewhere does no
harm: files are complete when they appear.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
# No -ffast-math: at link time it would switch denormal numbers off for the whole process.
# The OpenMP runtime is the one that torch has loaded.
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *(
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Werror",
        "-Wno-psabi",
        "-nodefaultlibs",
    ),
)
LEVELS = {
    "AVX512_BF16": ("-march=x86-64-v4", "-mavx512bf16"),
    "AVX512": ("-march=x86-64-v4",),
    "AVX2": ("-march=x86-64-v3",),
    "DEFAULT": (),
}
"""Highest first, by the names of ``torch.backends.cpu.get_cpu_capability()``, which does not know the first."""


class NoCompiler(RuntimeError):
    """There is no C++ compiler, or it failed."""


def levels() -> tuple[str, ...]:
    """What this kind of processor can be built for."""
    return tuple(LEVELS) if platform.machine() == "x86_64" else ("DEFAULT",)


def library_name(level: str) -> str:
    """Changes whenever sources or flags do."""
    parts = [" ".join((*_FLAGS, *LEVELS[level], platform.machine())).encode()]
    parts += [path.read_bytes() for path in (*sorted(SOURCES.glob("*.cpp")), *sorted(SOURCES.glob("*.h")))]
    return f"libreadapt-{level.lower()}-{hashlib.sha256(b''.join(parts)).hexdigest()[:12]}.so"


def cache_folder() -> Path:
    """``$READAPT_CACHE/kernels``, by default below the user's cache."""
    base = os.environ.get("READAPT_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(base) if base else Path(cache) / "readapt") / "kernels"


def compile_level(level: str, folder: Path) -> Path:
    """The library for one level in ``folder``, built if it is not there; raises NoCompiler."""
    target = folder / library_name(level)
    if target.is_file():
        return target
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise NoCompiler("no C++ compiler (g++) is installed")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        out = Path(scratch) / target.name
        sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
        command = [compiler, *_FLAGS, *LEVELS[level], *sources, "-o", str(out), "-lm", "-lc", "-lgcc"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoCompiler(f"{compiler} failed: {done.stderr.strip()[-2000:]}")
        out.replace(target)
    return target


def main() -> None:
    """Builds every level into the folder that is named, by default beside the sources."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCES
    for level in levels():
        sys.stdout.write(f"{compile_level(level, folder)}\n")


if __name__ == "__main__":
    main()
