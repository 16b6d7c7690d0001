"""Metrics say their unit and direction, and everything that people read says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from readapt_api.adaptation import Metric, Policy
from readapt_api.schema import crds

DOCS = Path(__file__).resolve().parents[2] / "docs" / "adaptation.md"
DIRECTIONS = {
    Metric.ACCURACY: ("points", "higher is better"),
    Metric.EXACT_MATCH: ("points", "higher is better"),
    Metric.F1: ("points", "higher is better"),
    Metric.AGREEMENT: ("points", "higher is better"),
    Metric.TOKEN_LOSS: ("nats per token", "lower is better"),
}


@pytest.mark.parametrize("metric", Metric)
def test_unit_and_direction(metric: Metric) -> None:
    assert (metric.unit.name, metric.direction) == DIRECTIONS[metric]
    better, worse = (0.6, 0.5) if metric.higher_is_better else (0.5, 0.6)
    assert metric.gain(better, worse) == pytest.approx(0.1)
    assert metric.gain(worse, better) == pytest.approx(-0.1)


def test_numbers_are_written_in_the_unit() -> None:
    assert Metric.F1.unit.score(0.916) == "91.6 %"
    assert Metric.F1.unit.difference(-0.052) == "-5.2"
    assert Metric.TOKEN_LOSS.unit.score(0.5124) == "0.512 nats per token"
    assert Metric.TOKEN_LOSS.unit.difference(0.0124) == "+0.012"


@pytest.mark.parametrize("metric", Metric)
def test_the_documentation_says_what_the_metric_says(metric: Metric) -> None:
    labels = "yes" if metric.needs_labels else "no"
    row = f"| `{metric}` | {metric.unit.name} | {metric.direction} | {labels} | {metric.says} |"
    assert row in DOCS.read_text()


def test_the_schema_takes_every_metric_and_every_policy() -> None:
    (adapter,) = (d for d in crds().values() if d["spec"]["names"]["kind"] == "LoRAAdapter")
    spec = adapter["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert spec["gate"]["properties"]["metric"]["enum"] == [metric.value for metric in Metric]
    assert spec["adaptation"]["properties"]["policy"]["enum"] == [policy.value for policy in Policy]
    assert spec["gate"]["properties"]["mode"]["enum"] == ["Enforce", "Skip"]
