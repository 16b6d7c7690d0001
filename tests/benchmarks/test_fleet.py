"""A fleet over a tiny move: real Jobs, together and one by one, come to the same; their seconds are added as told."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet import CUTS, SINGLE, TOGETHER, FleetPlan, adapters_table, of_jobs, of_tuning, table
from fleet_jobs import Job, Jobs, differing, publish_adapter, publish_move
from study_rows import Row

from readapt_api.adaptation import Policy
from readapt_api.artifacts import ArtifactKind, Origin
from readapt_api.contract import Digest
from readapt_api.jobs import AdaptationSettings, AdaptItem, AdaptRequest, GateSettings, Outcome
from readapt_runtime.jobs import adapt
from readapt_runtime.progress import JsonLog
from readapt_runtime.store import Store
from readapt_testing.tiny_models import tiny_models

QUIET = JsonLog(io.StringIO())
COPY = AdaptationSettings(policy=Policy.COPY)
DIGEST = Digest(f"sha256:{'3' * 64}")


@dataclass(frozen=True)
class Fleet:
    store: Store
    request: AdaptRequest


@pytest.fixture(scope="module")
def fleet(fixture_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Two adapters whose gates allow them everything and next to nothing."""
    models, store = tiny_models(fixture_cache), Store(tmp_path_factory.mktemp("published"))
    move, drift, seconds = publish_move(store, models.v1, models.v2, QUIET)
    assert seconds > 0
    reference = publish_adapter(store, models.adapter, move.old_base, 8)
    data = store.publish(ArtifactKind.DATA, models.data("adapter", "train").parent).digest
    items = tuple(
        AdaptItem(
            name=name,
            reference=reference,
            data=data,
            adaptation=COPY,
            gate=GateSettings(max_regression=margin, max_samples=200),
        )
        for name, margin in (("lenient", "0.9"), ("strict", "0.03"))
    )
    return Fleet(store, AdaptRequest(old_base=move.old_base, new_base=move.new_base, drift=drift, items=items))


def test_real_jobs_together_and_one_by_one_come_to_the_same_and_are_run_once(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(fleet.request, fleet.store.root, tmp_path, QUIET)
    together, singles = jobs.together(), jobs.one_by_one()
    assert [outcome.passed for outcome in together.outcomes] == [True, False]
    assert [len(job.outcomes) for job in (together, *singles)] == [2, 1, 1]
    assert differing(together, singles) == []
    assert min(job.seconds for job in (together, *singles)) > 0
    # The second single Job finds what the first has left, and what was published stays as it was.
    left = {path.name for path in (tmp_path / ".stores" / "alone-1" / "results").iterdir()}
    assert {path.name for path in (tmp_path / ".stores" / "alone-0" / "results").iterdir()} < left
    assert len(list((fleet.store.root / "results").glob("*.json"))) == 1
    monkeypatch.setattr(adapt, "run", lambda *_: pytest.fail("nothing is left to do"))
    assert (jobs.together(), jobs.one_by_one()) == (together, singles)


def outcome(name: str, passed: bool = True, variant: Digest | None = DIGEST) -> Outcome:
    origin = Origin.RELORA if passed else None
    return Outcome(name=name, input_hash=DIGEST, passed=passed, variant=variant if passed else None, origin=origin)


def row(task: str, seconds: float, passed: bool = True) -> Row:
    return Row(
        move="harder",
        task=task,
        size=200,
        seed=0,
        way="Copy+tuning",
        old_score=0.9,
        of_copy=0.95,
        shared={"yardstick": 12.0, "replay": 8.0, "old answers": 10.0},
        seconds=seconds,
        passed=passed,
        score=0.9,
        retention=0.9,
        curve=(),
        steps=30,
        origin="Copied",
        parts={},
    )


ONE = Job(70.0, (outcome("first"), outcome("second", passed=False)))
SINGLES = [Job(60.0, (outcome("first"),)), Job(48.0, (outcome("second", passed=False),))]
ROWS = [row("first", 50.0), row("second", 60.0, passed=False)]


def lines(text: str) -> Sequence[str]:
    return text.splitlines()[2:]


def test_drift_counts_once_and_plain_tuning_loads_and_asks_for_every_adapter() -> None:
    totals = [of_jobs(TOGETHER, [ONE], 2.0), of_jobs(SINGLE, SINGLES, 2.0), of_tuning(ROWS, loading=5.0)]
    assert [each.seconds for each in totals] == [72.0, 110.0, 2 * 5 + (50 + 10) + (60 + 10)]
    together, single, tuned = lines(table(totals))
    assert together == "| one Job | 1/2 | 72 | 2 | 36 | 1.00 |"
    assert single.startswith("| single Jobs | 1/2 | 110 | 2 | 54 ± ")
    assert tuned.startswith("| Copy+tuning | 1/2 | 140 | 0 | 70 ± ")
    assert tuned.endswith("| 1.94 |")


def test_the_tables_tell_who_is_not_ready_and_whether_company_changed_anything() -> None:
    text = adapters_table(ONE, SINGLES, ROWS)
    assert "| first | ReLoRA | 60 | ready | 50 | 30 |" in text
    assert "| second | not ready | 48 | not ready | 60 | 30 |" in text
    assert text.endswith("come to the same variants, digest by digest.\n")
    other = Job(60.0, (outcome("first", variant=Digest(f"sha256:{'4' * 64}")),))
    assert "come to other variants: first" in adapters_table(ONE, [other, SINGLES[1]], ROWS)


def test_a_fleet_of_eight_is_four_tasks_of_two_seeds() -> None:
    plan = FleetPlan(["harder"], CUTS, [200], 0, ("Copy+tuning",), adapter_steps=60, adapters=8)
    cases = list(plan.cases())
    assert len(set(cases)) == 8
    assert {(task, seed) for _, task, _, seed in cases} == {(task, seed) for task in CUTS for seed in (0, 1)}
