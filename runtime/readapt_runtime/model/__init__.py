"""Model execution: one decoder driven by the config, LoRA on its fused linears, attention over pages."""
