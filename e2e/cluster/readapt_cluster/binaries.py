"""Build the programs of the catalog once per machine and version.

In: tools of `catalog`. Out: paths under `<cache>/bin/<name>-<version>-<digest of go.mod and go.sum>/`.
A build takes place under a lock of its own and enters the cache by rename, so runs do not collide and
a killed one leaves nothing that looks finished.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from readapt_cluster import disk
from readapt_cluster.catalog import ALL, BY_NAME, Tool
from readapt_cluster.commands import run
from readapt_cluster.errors import BuildFailed, CommandFailed
from readapt_cluster.places import cache
from readapt_cluster.progress import say, step
from readapt_cluster.toolchain import find_go

_BUILD_SPACE_MB = 9_000
"""Module downloads, compiled packages and binaries of all programs together."""


def path_of(name: str) -> Path:
    """Where the program lies once it is built."""
    tool = BY_NAME[name]
    return cache() / "bin" / f"{name}-{tool.version}-{tool.digest}" / name


def missing(tools: Iterable[Tool]) -> list[Tool]:
    return [tool for tool in tools if not path_of(tool.name).exists()]


def ensure(tools: Iterable[Tool]) -> None:
    """Build what is missing, in the order given. Raises BuildFailed, or Refused when the disk is short."""
    absent = missing(tools)
    if not absent:
        return
    disk.require(cache(), _BUILD_SPACE_MB, "building the cluster's binaries")
    for tool in absent:
        with locked(cache() / f"{tool.name}.lock"):
            if not path_of(tool.name).exists():
                _build(tool)
    go = find_go(absent[0].folder / "go.mod")
    caches = [Path(line) for line in run([go, "env", "GOCACHE", "GOMODCACHE"]).split()]
    used = sum(disk.used_mb(folder) for folder in caches)
    say(f"Go's own caches hold {used} MB, needed for rebuilds only; `go clean -cache -modcache` empties them.")


def path_folder() -> Path:
    """One folder with a link to every program built so far, fit for `PATH`."""
    key = hashlib.sha256("".join(f"{tool.name}{tool.digest}" for tool in ALL).encode()).hexdigest()[:12]
    folder = cache() / "bin" / f"path-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    for tool in ALL:
        link = folder / tool.name
        if path_of(tool.name).exists() and not link.is_symlink():
            link.symlink_to(path_of(tool.name))
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file `path` exclusively, across processes; the lock goes when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"Waiting for another run that holds {path.name}"):
                fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _build(tool: Tool) -> None:
    target = path_of(tool.name)
    go = find_go(tool.folder / "go.mod")
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    jobs = str(os.cpu_count() or 1)
    with (
        step(f"Building {tool.name} {tool.version}", tool.usually),
        tempfile.TemporaryDirectory(dir=target.parent.parent, prefix=".building-") as scratch,
    ):
        built = Path(scratch) / tool.name
        options = ["-p", jobs, "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", tool.ldflags]
        try:
            run(
                [go, "build", *options, "-o", built, tool.package],
                env={"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"},
                cwd=tool.folder,
                timeout_s=3600,
            )
        except CommandFailed as failure:
            raise BuildFailed(f"{tool.name} {tool.version} did not build.\n{failure}") from failure
        target.parent.mkdir(exist_ok=True)
        built.rename(target)
    say(f"  {target.stat().st_size >> 20} MB; cache {disk.used_mb(cache())} MB in all")
