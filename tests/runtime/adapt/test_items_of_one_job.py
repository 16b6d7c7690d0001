"""Several adapters in one adapt Job: each comes to what it comes to alone, and what one has found is kept."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from readapt_api.adaptation import Policy
from readapt_api.artifacts import ArtifactKind, FactorBlock, Origin
from readapt_api.jobs import AdaptationSettings, AdaptItem, AdaptRequest, DriftRequest, GateSettings, Outcome
from readapt_runtime.jobs import adapt
from readapt_runtime.jobs.drift import run as measure_drift
from readapt_runtime.lora_format import LoraAdapter, base_shapes, read_adapter, write_adapter
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import MissingArtifact, Store
from readapt_testing.tiny_models import tiny_models

GATE = GateSettings(max_regression="0.9", max_samples=100)
"""Passes whatever is made: what is made is the matter."""


class Killed(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Published:
    root: Path
    request: AdaptRequest

    def copy(self, folder: Path) -> Store:
        return Store(Path(shutil.copytree(self.root, folder)))


@pytest.fixture(scope="module")
def published(fixture_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Two adapters, one of them a little weaker, under two policies: they share bases, drift, yardstick and data."""
    torch.manual_seed(0)
    models, root = tiny_models(fixture_cache), tmp_path_factory.mktemp("published")
    store = Store(root)
    old, new = (store.publish(ArtifactKind.BASE, folder).digest for folder in (models.v1, models.v2))
    drift = measure_drift(DriftRequest(old_base=old, new_base=new), store, JsonLog(io.StringIO())).digest
    modules = read_adapter(models.adapter, base_shapes(models.v1)).modules
    weaker = LoraAdapter({name: replace(module, b=0.9 * module.b) for name, module in modules.items()})
    folder = tmp_path_factory.mktemp("weaker")
    write_adapter(folder, weaker, "v1")
    references = [
        store.publish(ArtifactKind.VARIANT, adapter, base=old, rank=8, blocks=(FactorBlock(),)).digest
        for adapter in (models.adapter, folder)
    ]
    data = store.publish(ArtifactKind.DATA, models.data("adapter", "train").parent).digest
    items = tuple(
        AdaptItem(
            name=policy.value.lower(),
            reference=reference,
            data=data,
            adaptation=AdaptationSettings(policy=policy, trials=4, max_steps=4),
            gate=GATE,
        )
        for policy, reference in zip((Policy.COPY, Policy.RELORA), references, strict=True)
    )
    return Published(root, AdaptRequest(old_base=old, new_base=new, drift=drift, items=items))


@pytest.fixture(scope="module")
def together(published: Published, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, ...]:
    store = published.copy(tmp_path_factory.mktemp("together") / "store")
    return adapt.run(published.request, store, JsonLog(io.StringIO()))


def same(one: Outcome, other: Outcome) -> bool:
    """Apart from seconds."""
    facts = ("name", "input_hash", "passed", "variant", "origin", "message")
    return all(getattr(one, fact) == getattr(other, fact) for fact in facts)


def test_items_come_to_the_digests_of_single_jobs(
    published: Published, together: tuple[Outcome, ...], tmp_path: Path
) -> None:
    assert [outcome.origin for outcome in together] == [Origin.COPIED, Origin.RELORA]
    assert len({outcome.variant for outcome in together}) == 2
    for number, item in enumerate(published.request.items):
        alone = published.request.model_copy(update={"items": (item,)})
        (found,) = adapt.run(alone, published.copy(tmp_path / str(number)), JsonLog(io.StringIO()))
        assert found.variant is not None
        assert same(found, together[number])


def test_killed_between_its_items_a_job_keeps_the_first_and_makes_the_second(
    published: Published, together: tuple[Outcome, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, repair, repaired = published.copy(tmp_path / "store"), adapt.repair, list[str]()

    def dying(move: Any, item: Any, *more: Any) -> Any:
        if repaired:
            raise Killed
        repaired.append(item.name)
        return repair(move, item, *more)

    with monkeypatch.context() as patched:
        patched.setattr(adapt, "repair", dying)
        with pytest.raises(Killed):
            adapt.run(published.request, store, JsonLog(io.StringIO()))
    first = store.read_result(together[0].input_hash, Outcome)
    assert first is not None
    assert store.read_result(together[1].input_hash, Outcome) is None

    def counted(move: Any, item: Any, *more: Any) -> Any:
        repaired.append(item.name)
        return repair(move, item, *more)

    said = io.StringIO()
    monkeypatch.setattr(adapt, "repair", counted)
    found = adapt.run(published.request, store, JsonLog(said))
    assert repaired == [item.name for item in published.request.items]
    assert found[0] == first
    assert all(same(one, other) for one, other in zip(found, together, strict=True))
    events = [json.loads(line) for line in said.getvalue().splitlines()]
    assert [event["adapter"] for event in events if event["event"] == "adapted"] == [found[1].name]


def test_an_item_that_cannot_be_carried_is_left_out_and_the_first_that_cannot_ends_the_job(
    published: Published, together: tuple[Outcome, ...], tmp_path: Path
) -> None:
    """The first is the one whose Job it is; another gets a Job of its own, which says what is wrong."""
    good, other = published.request.items
    lost = other.model_copy(update={"reference": f"sha256:{'0' * 64}"})
    said = io.StringIO()
    request = published.request.model_copy(update={"items": (good, lost)})
    (found,) = adapt.run(request, published.copy(tmp_path / "store"), JsonLog(said))
    assert same(found, together[0])
    (line,) = [line for line in map(json.loads, said.getvalue().splitlines()) if line["event"] == "left out"]
    assert (line["adapter"], line["reason"]) == (lost.name, "MissingArtifact")

    with pytest.raises(MissingArtifact):
        adapt.run(request.model_copy(update={"items": (lost, good)}), published.copy(tmp_path / "two"), JsonLog(said))


def test_whose_work_a_line_of_a_shared_job_is_about_is_said(published: Published, tmp_path: Path) -> None:
    said: list[tuple[str, object]] = []

    class Recorded(JsonLog):
        def info(self, event: str, **fields: object) -> None:
            said.append((event, fields.get("adapter")))

        def progress(self, done: float, doing: str) -> None:
            said.append(("progress", doing))

    items = tuple(
        item.model_copy(update={"name": name}) for item, name in zip(published.request.items, "ab", strict=True)
    )
    request = published.request.model_copy(update={"items": items})
    adapt.run(request, published.copy(tmp_path / "store"), Recorded(io.StringIO()))
    assert {who for event, who in said if event == "trial"} == {"b"}, "the one that is searched for"
    doing = [str(words) for event, words in said if event == "progress"][:-1]
    assert {words.partition(": ")[0] for words in doing} == {"a", "b"}
