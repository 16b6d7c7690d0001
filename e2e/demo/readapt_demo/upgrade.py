"""The show itself: apply, ask, change one line under load, wait, roll back, judge."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from readapt_demo import judge, manifests
from readapt_demo.cast import Cast
from readapt_demo.kubectl import Kubectl, KubectlFailed
from readapt_demo.traffic import CONNECTIONS, Answer, Traffic, ask

Say = Callable[[str], None]


class DemoFailed(RuntimeError):
    """Something that the show promises did not happen."""


@dataclass(slots=True)
class Show:
    """One run against a cluster where Readapt is installed and the sources lie on their volume."""

    cast: Cast
    kubectl: Kubectl
    store: Path
    """The store's folder as this machine sees it; the judge reads variants from it."""
    say: Say
    wait_s: int
    """How long a roll-out or an upgrade may take."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    pairs: dict[str, list[judge.Pair]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """The report, as written to out/demo.json (without set-up)."""
        with self._step("apply and first roll-out"):
            self._apply("v1")
            self._wait_until_current("v1")
        url = self._service_url()
        self._greet(url)
        self._remember_pairs()
        with Traffic(url, self._questions()) as traffic:
            upgrade_seconds = self._move("v2", "upgrade v1 → v2")
            self._remember_pairs()
            jobs_before = self._job_uids()
            rollback_seconds = self._move("v1", "roll-back v2 → v1")
            rollback_jobs = len(self._job_uids() - jobs_before)
        with self._step("judge every answer with transformers + PEFT"):
            expected = judge.expected_texts(self.pairs, self.cast.questions)
            mixed = judge.mixed_sets(traffic.answers, self.pairs, expected)
        failed = [a for a in traffic.answers if a.failed]
        for line in [*(f"failed: {a.model} {a.status} {a.error}" for a in failed[:5]), *mixed[:5]]:
            self.say(line)
        return {
            "adapters": [self._adapter_row(role.name) for role in self.cast.roles],
            "requests": {
                "sent": len(traffic.answers),
                "failed": len(failed),
                "telling": {m: self._telling(m, traffic.answers, expected) for m in self.pairs},
                "by_set": self._by_set(traffic.answers),
                "by_connection": {
                    c: sum(a.connection == c and not a.failed for a in traffic.answers) for c in CONNECTIONS
                },
            },
            "mixed_sets": len(mixed),
            "rollback_jobs": rollback_jobs,
            "upgrade_seconds": round(upgrade_seconds, 1),
            "rollback_seconds": round(rollback_seconds, 1),
            "steps": self.steps,
        }

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        self.say(name)
        started = time.monotonic()
        yield
        self.steps.append({"name": name, "seconds": round(time.monotonic() - started, 1)})

    def _apply(self, version: str) -> None:
        self.kubectl.apply(manifests.base_model(self.cast, version))
        for role in self.cast.roles:
            self.kubectl.apply(manifests.lora_adapter(self.cast, role))

    def _wait_until_current(self, version: str) -> None:
        """kubectl wait on the BaseModel, then on every adapter; prints what a user sees on the way."""
        deadline = time.monotonic() + self.wait_s
        base = f"basemodel/{self.cast.base}"
        seen = ""
        told: set[str] = set()
        while True:
            try:
                for line in self.kubectl.job_progress():
                    words, _, _ = line.partition(" (")
                    if words not in told:
                        self.say(line)
                        told.add(words)
                overview = self.kubectl.overview()
                if _without_age(overview) != seen:
                    self.say("kubectl get rbm,rla\n" + overview)
                    seen = _without_age(overview)
                if problem := self._stalled():
                    raise DemoFailed(problem)
                self.kubectl.wait(base, "condition=UpToDate", 5)
                self.kubectl.wait(base, f"jsonpath={{.status.version}}={version}", 5)
                for role in self.cast.roles:
                    self.kubectl.wait(f"loraadapter/{role.name}", "condition=Ready", 5)
                self.say("kubectl get rbm,rla\n" + self.kubectl.overview())
                return
            except KubectlFailed:  # it is not so far yet, or the API server did not answer this once
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def _stalled(self) -> str:
        """The message of the first object that waits for a person, or nothing."""
        for item in (i for kind in ("loraadapters", "basemodels") for i in self.kubectl.get(kind)["items"]):
            for condition in item.get("status", {}).get("conditions", ()):
                if condition["type"] == "Stalled" and condition["status"] == "True":
                    return f"{item['metadata']['name']} is stalled: {condition['reason']}: {condition['message']}"
        return ""

    def _move(self, version: str, name: str) -> float:
        """Changes spec.version, one line, and waits; seconds from the change until everything is current."""
        with self._step(name):
            started = time.monotonic()
            patch = f'{{"spec": {{"version": "{version}"}}}}'
            self.kubectl("patch", "basemodel", self.cast.base, "--type", "merge", "-p", patch)
            self._wait_until_current(version)
            return time.monotonic() - started

    def _service_url(self) -> str:
        service = self.kubectl.get("service", self.cast.base)
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def _questions(self) -> list[tuple[str, str]]:
        models = [self.cast.base, *(role.name for role in self.cast.roles)]
        return [(model, prompt) for prompt in self.cast.questions for model in models]

    def _greet(self, url: str) -> None:
        """Asks base and adapters once through the Service and shows the answers."""
        with httpx.Client(base_url=url, timeout=60.0) as client:
            for model, prompt in self._questions()[: 1 + len(self.cast.roles)]:
                answer = ask(client, model, prompt)
                if answer.failed:
                    raise DemoFailed(f"{model} did not answer: {answer.status} {answer.error}")
                self.say(f"{model}: {prompt!r} → {answer.text!r}   [{answer.adapter or 'base'}, set {answer.revision}]")

    def _remember_pairs(self) -> None:
        """Notes base and variants of the set that is served now, for the judge."""
        status = self.kubectl.get("basemodel", self.cast.base)["status"]
        digest = next(v["digest"] for v in status["versions"] if v["name"] == status["version"])
        base = self._artifact(digest)
        self._pair(self.cast.base, judge.Pair(status["revision"], base))
        for role in self.cast.roles:
            served = self.kubectl.get("loraadapter", role.name)["status"]["servedDigest"]
            self._pair(role.name, judge.Pair(status["revision"], base, self._artifact(served), served))

    def _pair(self, model: str, pair: judge.Pair) -> None:
        self.pairs.setdefault(model, []).append(pair)

    def _artifact(self, digest: str) -> Path:
        return self.store / "artifacts" / digest.removeprefix("sha256:")

    def _telling(self, model: str, answers: Sequence[Answer], expected: judge.Expected) -> int:
        """Answers of a model whose text alone shows which set it came from."""
        given = [a for a in answers if a.model == model and not a.failed]
        return sum(judge.is_telling(a, self.pairs, expected) for a in given)

    def _by_set(self, answers: Sequence[Answer]) -> dict[str, int]:
        """Answers of each set that was served, by its revision: one that gave none was not shown to be right."""
        given = Counter(a.revision for a in answers if not a.failed)
        return {pair.revision: given[pair.revision] for pair in self.pairs[self.cast.base]}

    def _job_uids(self) -> set[str]:
        return {job["metadata"]["uid"] for job in self.kubectl.get("jobs")["items"]}

    def _adapter_row(self, name: str) -> dict[str, Any]:
        """The adapter's variant for v2, as status tells it."""
        variants = self.kubectl.get("loraadapter", name)["status"]["variants"]
        found: dict[str, Any] = next((v for v in variants if v["baseVersion"] == "v2"), {})
        return {
            "name": name,
            "origin": found.get("origin"),
            "gate": found.get("reason"),
            "score_before": _number(found.get("reference")),
            "score_copy": _number(found.get("copyScore")),
            "score_after": _number(found.get("score")),
            "interval": found.get("interval"),
            "retention": _number(found.get("retention")),
            "repair_seconds": found.get("repairSeconds"),
            "ready_seconds": found.get("readySeconds"),
            "report": str(self.store / found["report"]) if "report" in found else None,
        }


def _without_age(overview: str) -> str:
    """The table without its last column, which changes by itself."""
    return "\n".join(line.rsplit(None, 1)[0] for line in overview.splitlines() if line.strip())


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
