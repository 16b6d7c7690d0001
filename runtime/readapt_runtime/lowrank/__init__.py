"""One factored low-rank algebra for extraction, drift, re-adaptation and folding.

factors.py        LowRank: a matrix kept as left @ right, and what can be done to it without ever multiplying it out
decomposition.py  dense matrices -> their leading singular directions; krylov.py: the subspaces they are found in
"""

from readapt_runtime.lowrank.decomposition import Decomposition, decompose, decompose_all
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
    "decompose_all",
    "energy",
    "inner",
    "norm",
    "project",
    "recompress",
    "scale",
    "singular_values",
    "split_symmetric",
]
