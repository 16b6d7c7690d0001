"""One budget of parameters for a whole adapter: the directions of all modules compete for it.

In: what each direction of each module gains (σ²) and costs (in + out parameters). Out: a rank per module. Next: the
rank policy hands them to extraction. Greedy by gain per parameter, σ² / (in + out), from one serving rank to the
next, so that ranks need no rounding afterwards and the budget is never exceeded. Singular values fall, so a module's
steps get worse and worse, and greedy is the optimum of the problem in which the last step may be taken in part.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import torch


def spend(
    budget: int, gains: Mapping[str, torch.Tensor], costs: Mapping[str, int], steps: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """Module name -> rank; the parameters, Σ rank·cost, are at most ``budget``.

    ``gains``: [r] per module, descending. ``costs``: parameters of one direction. ``steps``: the ranks that a module
    may have, ascending. A step that no longer fits, or gains nothing, ends its module; smaller ones of other modules
    may still fit.
    """
    ranks = dict.fromkeys(gains, 0)
    order = {name: at for at, name in enumerate(gains)}
    totals = {name: gain.cumsum(0).tolist() for name, gain in gains.items()}

    def offer(name: str, step: int) -> tuple[float, int, str, int]:
        """Best first; of equal ones the earlier module."""
        before, after = ranks[name], steps[name][step]
        gained = totals[name][after - 1] - (totals[name][before - 1] if before else 0.0)
        return -gained / ((after - before) * costs[name]), order[name], name, step

    offers = [offer(name, 0) for name in gains]
    heapq.heapify(offers)
    left = budget
    while offers:
        worth, _, name, step = heapq.heappop(offers)
        price = (steps[name][step] - ranks[name]) * costs[name]
        if price > left or worth == 0:
            continue
        left -= price
        ranks[name] = steps[name][step]
        if step + 1 < len(steps[name]):
            heapq.heappush(offers, offer(name, step + 1))
    return ranks
