"""PHLoRA (arXiv 2509.10971): a LoRA adapter out of a full fine-tuned checkpoint, without data."""

from readapt_runtime.extract.extraction import Extraction, Options, extract
from readapt_runtime.extract.ranks import MAX_RANK, SERVING_RANKS, RankPolicy
from readapt_runtime.extract.report import EXTRACT_REPORT, ExtractReport

__all__ = [
    "EXTRACT_REPORT",
    "MAX_RANK",
    "SERVING_RANKS",
    "ExtractReport",
    "Extraction",
    "Options",
    "RankPolicy",
    "extract",
]
