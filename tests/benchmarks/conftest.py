"""The benchmarks are scripts, not a package: their folders are where they import from."""

from __future__ import annotations

import sys
from pathlib import Path

for _name in ("serving", "adaptation"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / _name))
