"""The serving process: OpenAI-compatible answers on one port, administration on another."""
