"""The library call behind ``readapt extract``: adapter, sidecar and report.json, checked, without a page about it.

python extraction_by_readapt.py BASE FINETUNED OUT RANK
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from readapt_runtime.extract import RankPolicy, extract
from readapt_runtime.progress import JsonLog

if __name__ == "__main__":
    rank = int(sys.argv[4])
    policy = RankPolicy(fixed=rank, max_rank=rank)
    extract(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), policy, JsonLog(io.StringIO()))
