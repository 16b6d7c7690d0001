"""One word per class in place of its name: a token of its own, taken from the name where that is possible.

With names of several tokens each question costs as many rows as there are names, which makes a benchmark several times
slower and tells no more about learning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy
from scipy.optimize import linear_sum_assignment
from transformers import PreTrainedTokenizerBase

_ANOTHER = 1e4
"""Cost of a word that is not of the name; one of the name costs the square of how many names have it."""


def one_word_each(names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Mapping[str, str]:
    """Name -> `` word``: the assignment that prefers the rarest words of the names. Raises ValueError when none is."""
    count = Counter(word for name in names for word in set(name.split()))
    words = sorted(word for word in count if len(tokenizer(f" {word}")["input_ids"]) == 1)
    cost = numpy.full((len(names), len(words)), _ANOTHER)
    for row, name in enumerate(names):
        for column, word in enumerate(words):
            if word in name.split():
                cost[row, column] = count[word] ** 2
    if len(words) < len(names):
        raise ValueError(f"{len(names)} classes, and their names have only {len(words)} words of one token")
    rows, columns = linear_sum_assignment(cost)
    return {names[row]: f" {words[column]}" for row, column in zip(rows, columns, strict=True)}
