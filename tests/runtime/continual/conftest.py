"""A small base and questions that come as tasks: words of a topic are answered with its label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from readapt_runtime.adapt.base import LoadedBase, load_base
from readapt_runtime.adapt.data import Splits, read_examples, split
from readapt_runtime.lora_format import Shape, base_shapes
from readapt_testing.tiny_models import TinyModels, tiny_models

BASE = f"sha256:{'1' * 64}"


@pytest.fixture(scope="session")
def models(fixture_cache: Path) -> TinyModels:
    return tiny_models(fixture_cache)


@pytest.fixture(scope="session")
def base(models: TinyModels) -> LoadedBase:
    return load_base(models.v1, BASE)


@pytest.fixture(scope="session")
def shapes(models: TinyModels) -> dict[str, Shape]:
    return base_shapes(models.v1)


@pytest.fixture(scope="session")
def task_splits(models: TinyModels) -> Callable[[range], Splits]:
    """The examples whose label is among these."""
    every = {s: read_examples(models.data("adapter", s)) for s in ("train", "validation", "test")}

    def choose(labels: range) -> Splits:
        names = {f" label{i}" for i in labels}
        parts = {s: [e for e in examples if e.completion in names] for s, examples in every.items()}
        return split(parts["train"], parts["validation"], parts["test"])

    return choose
