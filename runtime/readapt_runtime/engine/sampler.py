"""Next tokens for the sampled rows of a step, all rows in one batch, on the device of the logits.

In: logits, the largest of each row and ``Draws``. Out: a tensor of tokens that the engine reads once.
"""

from __future__ import annotations

import torch

from readapt_runtime.engine.core import Sequence, TokenScores
from readapt_runtime.engine.draws import Draws

UNSOUND = -1
"""In place of a token where the logits hold a NaN or an infinity: nothing can be drawn from them."""


def pick(logits: torch.Tensor, best: torch.Tensor, are_finite: torch.Tensor, draws: Draws) -> torch.Tensor:
    """One token per row, int64 ``[rows]``, or UNSOUND: logits ``[rows, vocab]``.

    Greedy rows take ``best``, the first largest. Nothing here waits for the device; ``draws`` lie where the logits do.
    """
    if len(draws.rows):
        drawn = _draw(logits.index_select(0, draws.rows).float(), draws)
        best = best.index_copy(0, draws.rows.long(), drawn)
    return best.masked_fill(~are_finite, UNSOUND)


def score_tokens(logits: torch.Tensor, tokens: list[int], seqs: list[Sequence]) -> dict[int, TokenScores]:
    """Row -> scores of its chosen token, for sound rows that asked; logits ``[rows, vocab]`` as the model gave them."""
    asked = [i for i, seq in enumerate(seqs) if _is_scored(tokens[i], seq)]
    if not asked:
        return {}
    log_probs = logits[asked].float().log_softmax(dim=-1)
    chosen = log_probs.gather(1, torch.tensor([[tokens[i]] for i in asked], device=logits.device)).squeeze(1).tolist()
    widths = [seqs[i].request.sampling.top_log_probs or 0 for i in asked]
    values, ids = log_probs.topk(min(max(widths), log_probs.shape[-1]), dim=-1)
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return {
        row: TokenScores(own, tuple(zip(ids_of_row[:width], values_of_row[:width], strict=True)))
        for row, own, width, (ids_of_row, values_of_row) in zip(asked, chosen, widths, tops, strict=True)
    }


def _is_scored(token: int, seq: Sequence) -> bool:
    return token != UNSOUND and seq.request.sampling.top_log_probs is not None


def _draw(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Nucleus sampling by inversion: the sorted distribution is cut at top_p and one uniform number picks from it."""
    below = logits - logits.amax(dim=-1, keepdim=True)  # so that no temperature makes an infinity of the largest
    scaled = below / draws.temperature[:, None]
    probs, order = torch.softmax(scaled, dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probs.cumsum(dim=-1) - probs  # mass of the likelier tokens
    kept = probs.masked_fill(~(before < draws.top_p[:, None]), 0.0)
    kept[:, 0] = probs[:, 0]  # always, also where top_p is 0 in float32
    mass = kept.cumsum(dim=-1)
    rank = torch.searchsorted(mass, draws.point[:, None] * mass[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    # rounding may put the point at the very end of the mass: fall back to the last kept token
    rank = torch.minimum(rank, (kept > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    return order.gather(1, rank).squeeze(1)
