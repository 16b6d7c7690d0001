"""The KV write in plain torch: the oracle of the kernel, and what the CPU backend does.

``kv[slots[t] // P, 0, slots[t] % P] = k[t]`` and ``kv[slots[t] // P, 1, slots[t] % P] = v[t]`` for ``t < count``, P
tokens a page.
"""

from __future__ import annotations

import torch


def write(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor, count: int) -> None:
    """k, v ``[tokens, kv heads, dim]`` into kv ``[pages, 2, page tokens, kv heads, dim]``; slots ``[>= count]``."""
    page_tokens = kv.shape[2]
    at = slots[:count].long()
    pages, inside = at // page_tokens, at % page_tokens
    kv[:, 0][pages, inside] = k[:count].to(kv.dtype)
    kv[:, 1][pages, inside] = v[:count].to(kv.dtype)
