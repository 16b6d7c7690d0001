"""Attention over the page pool: decode (one query a sequence, context split) and prefill (several queries, causal)."""
