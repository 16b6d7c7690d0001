"""Tensor parallelism: one server process, and worker processes that hold the other shares of model and adapters."""
