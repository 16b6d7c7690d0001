"""One factored low-rank algebra for extraction, drift, re-adaptation and folding.

factors.py    LowRank: a matrix kept as left @ right, and what can be done to it without ever multiplying it out
decompose.py  a dense matrix -> LowRank by randomized SVD
"""

from readapt_runtime.lowrank.decomposition import Decomposition, decompose
from readapt_runtime.lowrank.factors import (
    LowRank,
    NotFinite,
    add,
    energy,
    inner,
    norm,
    project,
    recompress,
    scale,
    singular_values,
    split_symmetric,
)

__all__ = [
    "Decomposition",
    "LowRank",
    "NotFinite",
    "add",
    "decompose",
    "energy",
    "inner",
    "norm",
    "project",
    "recompress",
    "scale",
    "singular_values",
    "split_symmetric",
]
