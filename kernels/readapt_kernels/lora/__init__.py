"""LoRA on ragged batches: shrink to the rank, expand to the output."""
