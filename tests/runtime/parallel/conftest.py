from __future__ import annotations

import pytest

from readapt_testing.tiny_engine import Tiny, build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny Llama with adapters, as folders."""
    return build_tiny(tmp_path_factory.mktemp("tiny"))
