"""How much room there is, and a refusal that says how much a step needs."""

import os
import shutil
from pathlib import Path

from readapt_cluster.errors import Refused
from readapt_cluster.places import cache


def free_mb(path: Path) -> int:
    """Free megabytes on the file system that holds `path` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free >> 20


def require(path: Path, needed_mb: int, purpose: str) -> None:
    """Raises Refused unless `needed_mb` are free where `path` lies."""
    free = free_mb(path)
    if free < needed_mb:
        raise Refused(
            f"Too little disk for {purpose}: {needed_mb} MB needed at {path}, {free} MB free. Free some space"
            + (", or set READAPT_CACHE to a folder on a larger disk." if path.is_relative_to(cache()) else ".")
        )


def used_mb(folder: Path) -> int:
    """Megabytes that files below `folder` occupy; links are not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total >> 20
