"""Pages of 2 MiB, as the kernel counts them."""

from __future__ import annotations

import re
from pathlib import Path


def huge_pages() -> str:
    """The setting: always, madvise or never."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    found = re.search(r"\[(\w+)\]", setting.read_text()) if setting.is_file() else None
    return found[1] if found else "never"


def refused() -> int:
    """How often the kernel had none left."""
    found = re.search(r"thp_fault_fallback (\d+)", Path("/proc/vmstat").read_text())
    assert found
    return int(found[1])


def huge_bytes_at(address: int) -> int:
    """Of the mapping that holds the address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(mapping[1], 16) <= address < int(mapping[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the address is in no mapping")
