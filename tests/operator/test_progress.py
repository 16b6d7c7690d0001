"""status.progress: what a running Job's log tells, at most twice a minute, and nothing that depends on it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from readapt_api import labels
from readapt_operator.progress import percent_in
from readapt_testing.fake_kube import FakeKube
from readapt_testing.fake_world import NAMESPACE, World, base_model, lora_adapter


def line(percent: object, event: str = "progress") -> str:
    return json.dumps({"time": 1.0, "level": "info", "event": event, "percent": percent, "doing": "tuning"})


class Held(World):
    """Repairs run until they are let go; their pods write a log."""

    held = True
    pod = ""

    def _jobs(self) -> None:
        running = [
            (name, job)
            for name, job in self.kube.of("Job").items()
            if job["metadata"]["labels"][labels.JOB_KIND] == "adapt" and not (job.get("status") or {}).get("conditions")
        ]
        if not self.held or not running:
            if self.pod in self.kube.of("Pod"):
                self.kube.remove("Pod", self.pod)
            super()._jobs()
            return
        ((name, job),) = running
        self.pod = f"{name}-pod"
        if job.get("status", {}).get("ready"):
            return
        self.kube.change("Job", name, status={"active": 1, "ready": 1})
        owner = {"kind": "Job", "name": name, "uid": job["metadata"]["uid"], "controller": True}
        meta = {"name": self.pod, "namespace": NAMESPACE, "ownerReferences": [owner]}
        meta["labels"] = {**job["metadata"]["labels"], labels.JOB_NAME: name}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}, "status": {"phase": "Running"}}
        self.kube.put(pod)

    @property
    def progress(self) -> object:
        return self.kube.of("LoRAAdapter")["a"]["status"].get("progress")

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.step()


@pytest.fixture
def world() -> Iterator[Held]:
    """An adapter whose repair for v2 has started."""
    with Held() as found:
        found.kube.put(base_model("v2"))
        found.kube.put(lora_adapter("a"))
        for _ in range(60):
            found.step()
            if found.pod:
                break
        yield found


def test_the_status_says_how_far_the_job_is_and_nothing_once_it_has_ended(world: Held) -> None:
    world.kube.logs[world.pod] = f"{line(20)}\nTraceback of something\n{line(43)}\n{line(99, 'trial')}\n"
    world.wait(3)
    assert world.progress == "43%"
    world.kube.logs[world.pod] += line(60) + "\n"
    world.wait(32)
    assert world.progress == "60%"
    world.held = False
    world.wait(5)
    assert world.progress is None


def test_a_log_is_read_twice_a_minute_and_the_status_written_when_it_tells_more(
    world: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    log = FakeKube.log

    async def counted(kube: FakeKube, namespace: str, pod: str, container: str, lines: int) -> str:
        nonlocal reads
        reads += 1
        return await log(kube, namespace, pod, container, lines)

    monkeypatch.setattr(FakeKube, "log", counted)
    world.kube.logs[world.pod] = line(43)
    world.wait(5)
    writes = len(world.kube.writes)
    world.wait(120)
    assert 4 <= reads <= 5
    assert len(world.kube.writes) == writes


def test_a_log_that_cannot_be_read_holds_nothing_up(world: Held) -> None:
    world.wait(40)
    assert world.progress is None
    world.held = False
    world.settle()
    assert world.kube.of("LoRAAdapter")["a"]["status"]["variants"][-1]["passed"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([line(0)], "0%"),
        ([line(43), line(100)], "100%"),
        ([line(43), "{", "[1]", "null", ""], "43%"),
        ([line(-1), line(101), line("7"), line(1.5), line(None)], None),
        ([line(50, "trial")], None),
        ([], None),
    ],
    ids=["begun", "the last counts", "other lines", "no percents", "other events", "nothing yet"],
)
def test_only_lines_of_progress_count(lines: list[str], told: str | None) -> None:
    assert percent_in(lines) == told
