"""Paged attention in plain torch: the oracle of both kernels, in any dtype up to fp64.

``out[t] = softmax(scale · q[t] · K^T) · V`` over the keys 0..p of t's sequence, p the position of t. Decode is the case
of one new token a sequence.
"""

from __future__ import annotations

import torch

from readapt_kernels.attention.operands import Sequences


def attend(q: torch.Tensor, kv: torch.Tensor, seqs: Sequences, scale: float) -> torch.Tensor:
    """q ``[tokens, heads, dim]``, kv ``[pages, 2, page tokens, kv heads, dim]`` -> ``[tokens, heads, dim]``.

    A query without any key gets zeros; so do tokens of no sequence.
    """
    out = torch.zeros_like(q)
    for s in range(int(seqs.count)):
        start, new, context = (int(b[s]) for b in (seqs.query_starts, seqs.query_lens, seqs.context_lens))
        if context == 0:
            continue
        keys, values = _gather(kv, seqs.page_table[s], context)  # [context, kv heads, dim]
        group = q.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = scale * torch.einsum("thd,chd->htc", q[start : start + new], keys)  # [heads, new, context]
        last = torch.arange(context - new, context, device=q.device)[:, None]
        hidden = torch.arange(context, device=q.device)[None, :] > last
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[start : start + new] = torch.einsum("htc,chd->thd", weights, values)
    return out


def _gather(kv: torch.Tensor, pages: torch.Tensor, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    held = kv[pages[: -(-context // kv.shape[2])].long()]  # [pages of the sequence, 2, page tokens, kv heads, dim]
    return held[:, 0].flatten(0, 1)[:context], held[:, 1].flatten(0, 1)[:context]
