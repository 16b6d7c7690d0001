"""Next tokens for the sampled rows of a step, all rows in one batch, on the device of the logits.

In: logits, the largest of each row and ``Draws``. Out: a tensor of tokens that the engine reads once. Random rows are
drawn by inversion in the order of the vocabulary, so only a top_p below 1 asks which tokens are likelier than others:
``draw`` sorts those rows, the compiled kernel (``readapt_kernels.cpu``) none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from readapt_runtime.engine.core import Sequence, TokenScores
from readapt_runtime.engine.draws import Draws

UNSOUND = -1
"""In place of a token where the logits hold a NaN or an infinity: nothing can be drawn from them."""


Draw = Callable[[torch.Tensor, torch.Tensor, Draws], torch.Tensor]
"""See ``draw``."""


def pick(logits: torch.Tensor, best: torch.Tensor, are_finite: torch.Tensor, draws: Draws, draw: Draw) -> torch.Tensor:
    """One token per row, int64 ``[rows]``, or UNSOUND: logits ``[rows, vocab]``.

    Greedy rows take ``best``, the first largest. Nothing here waits for the device; ``draws`` lie where the logits do.
    """
    if len(draws.rows):
        best = best.index_copy(0, draws.rows.long(), draw(logits, best, draws))
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


def draw(logits: torch.Tensor, best: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Tokens of the random rows, int64 ``[random rows]``; any where a row is not finite.

    The first token at which the mass that top_p keeps, added up in the order of the vocabulary, is above ``point`` of
    it.
    """
    rows = draws.rows.long()
    chosen = logits.index_select(0, rows).float()
    largest = chosen.gather(1, best.index_select(0, rows)[:, None])
    weights = ((chosen - largest) / draws.temperature[:, None]).exp()  # no temperature makes an infinity of the largest
    if draws.num_cut:
        cut = _nucleus(weights[: draws.num_cut], draws.top_p[: draws.num_cut])
        weights = torch.cat((cut, weights[draws.num_cut :]))
    mass = weights.double().cumsum(dim=-1)
    target = draws.point.double()[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def _nucleus(weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """``[rows, vocab]`` without what lies outside of the smallest set of the likeliest that has top_p of the mass.

    Of equal ones the first are kept, and the likeliest always, also where top_p is 0 in float32.
    """
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    upto = ordered.double().cumsum(dim=-1)
    outside = upto - ordered >= top_p.double()[:, None] * upto[:, -1:]
    outside[:, 0].zero_()
    return weights.scatter(1, order, ordered.masked_fill(outside, 0.0))
