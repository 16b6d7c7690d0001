"""Next tokens for the sampled rows of a step, all rows in one batch.

Each random request owns a generator seeded by itself, so its draws do not depend on who shares the batch.
"""

from __future__ import annotations

import torch

from readapt_runtime.engine.core import Sequence, TokenScores

GREEDY_BELOW = 1e-5


def sample(logits: torch.Tensor, best: torch.Tensor, seqs: list[Sequence]) -> list[int]:
    """One token per row: logits ``[rows, vocab]``; greedy rows take ``best``, the first largest int64 ``[rows]``."""
    tokens = best.clone()
    random_rows = [i for i, seq in enumerate(seqs) if seq.request.sampling.temperature >= GREEDY_BELOW]
    if random_rows:
        tokens[random_rows] = _draw(logits[random_rows].float(), [seqs[i] for i in random_rows])
    return [int(token) for token in tokens.tolist()]


def score_tokens(logits: torch.Tensor, tokens: list[int], seqs: list[Sequence]) -> dict[int, TokenScores]:
    """Row -> scores of its chosen token, for the rows that asked: logits ``[rows, vocab]``, as the model gave them."""
    asked = [i for i, seq in enumerate(seqs) if seq.request.sampling.top_log_probs is not None]
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


def _draw(logits: torch.Tensor, seqs: list[Sequence]) -> torch.Tensor:
    """Nucleus sampling by inversion: the sorted distribution is cut at top_p and one uniform number picks from it."""
    params = [seq.request.sampling for seq in seqs]
    temperature = torch.tensor([p.temperature for p in params], dtype=torch.float32, device=logits.device)
    top_p = torch.tensor([p.top_p for p in params], dtype=torch.float32, device=logits.device)
    below = logits - logits.amax(dim=-1, keepdim=True)  # so that no temperature makes an infinity of the largest
    probs, order = torch.softmax(below / temperature[:, None], dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probs.cumsum(dim=-1) - probs  # mass of the likelier tokens
    kept = torch.where(before < top_p[:, None], probs, 0.0)
    kept[:, 0] = probs[:, 0]  # always, also where top_p is 0 in float32
    mass = kept.cumsum(dim=-1)
    point = torch.tensor([[_uniform(seq)] for seq in seqs], dtype=torch.float32, device=logits.device) * mass[:, -1:]
    rank = torch.searchsorted(mass, point, right=True).clamp(max=logits.shape[-1] - 1)
    # rounding may put the point at the very end of the mass: fall back to the last kept token
    rank = torch.minimum(rank, (kept > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    return order.gather(1, rank).squeeze(1)


def _uniform(seq: Sequence) -> float:
    if seq.generator is None:
        seq.generator = torch.Generator()
        seed = seq.request.sampling.seed
        if seed is None:
            seq.generator.seed()
        else:
            seq.generator.manual_seed(seed)
    return float(torch.rand((), generator=seq.generator))
