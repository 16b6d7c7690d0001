"""Paged prefill attention: the new tokens of a sequence attend to its pages and causally to themselves."""
