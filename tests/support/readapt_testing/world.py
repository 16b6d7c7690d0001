"""One namespace in which everything is real but the node: operator, controllers, Jobs, serving pods, store.

A ``World`` is put together by ``worlds`` in ``tests/control_plane/conftest.py``; this is what tests say to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readapt_api import conditions, labels
from readapt_api.v1alpha1 import API_VERSION
from readapt_testing.fault_proxy import FaultProxy
from readapt_testing.kube import Kube, Object
from readapt_testing.operator_process import OperatorProcess
from readapt_testing.player import Player
from readapt_testing.recorder import Recorder
from readapt_testing.tiny_models import TinyModels

BASE = "tiny"
ADAPTER = "topics"
CHECKPOINT = "shifted"
STORE_CLAIM, MODELS_CLAIM = "store", "models"
SERVING = {
    "maxModelLen": 256,
    "maxBatchTokens": 256,
    "poolMemory": "64Mi",
    "maxRank": 32,
    "dtype": "Float32",
}
ADAPTATION = {
    "minRetention": "0.8",
    "search": {"trials": 6},
    "tuning": {"maxSteps": 100, "learningRate": "1e-3", "batchSize": 16},
}
GATE = {"maxRegression": "0.04", "maxSamples": 800}
SETTLE_S = 600.0
"""Generous: the machine may be busy. Nothing waits for it to pass."""


@dataclass(frozen=True, slots=True)
class World:
    """See the module."""

    kube: Kube
    namespace: str
    models: TinyModels
    """A copy of its own on the claim ``models``: tests may spoil it."""
    store: Path
    player: Player
    recorder: Recorder
    operator: OperatorProcess
    proxy: FaultProxy | None

    def apply_base(self, version: str = "v1", versions: list[Object] | None = None, **spec: Any) -> Object:
        """The BaseModel ``tiny`` with v1 and v2, wishing for ``version``."""
        listed = versions or [{"name": v, "source": {"uri": f"pvc://{MODELS_CLAIM}/{v}"}} for v in ("v1", "v2")]
        body = {"store": {"claimName": STORE_CLAIM}, "versions": listed, "version": version, "serving": SERVING}
        return self._apply("BaseModel", BASE, body | spec)

    def apply_adapter(self, name: str = ADAPTER, folder: str = "adapter", **spec: Any) -> Object:
        """A LoRAAdapter with an existing PEFT adapter trained on v1."""
        source = {"adapter": {"uri": f"pvc://{MODELS_CLAIM}/{folder}", "baseVersion": "v1"}}
        return self._apply_adapter(name, source, "adapter", spec)

    def apply_checkpoint(self, name: str = CHECKPOINT, **spec: Any) -> Object:
        """A LoRAAdapter that is extracted from the full fine-tuned checkpoint of v1."""
        source = {"uri": f"pvc://{MODELS_CLAIM}/checkpoint", "baseVersion": "v1", "rank": {"fixed": 32}}
        return self._apply_adapter(name, {"checkpoint": source | {"maxRank": 32}}, "checkpoint", spec)

    def apply_trained(self, name: str, **train: Any) -> Object:
        """A LoRAAdapter that is trained from the adapter's examples."""
        return self._apply_adapter(name, {"train": train}, "adapter", {})

    def apply_tasks(self, name: str, tasks: Sequence[str], **settings: Any) -> Object:
        """A LoRAAdapter that learns what lies in ``data/TASK`` of the models' claim, in this order."""
        listed = [{"name": task, "data": _splits(task), **settings} for task in tasks]
        body = {"baseModelRef": {"name": BASE}, "source": {"tasks": listed}, "adaptation": ADAPTATION, "gate": GATE}
        return self._apply("LoRAAdapter", name, body)

    def wish(self, version: str) -> None:
        """Changes ``spec.version``: the one line that starts an upgrade or a roll-back."""
        self.kube.patch("BaseModel", BASE, {"spec": {"version": version}}, self.namespace)

    def base(self) -> Object:
        return self._get("BaseModel", BASE)

    def adapter(self, name: str = ADAPTER) -> Object:
        return self._get("LoRAAdapter", name)

    def wait(
        self, kind: str, name: str, until: Callable[[Object], bool], what: str, timeout_s: float = SETTLE_S
    ) -> Object:
        """Follows one object; a time-out shows the operator's and the pods' output too."""
        try:
            found = self.kube.wait(kind, name, self.namespace, lambda o: o is not None and until(o), timeout_s, what)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.evidence()}") from error
        if found is None:
            raise AssertionError(f"{kind} {name} is absent")
        return found

    def wait_condition(
        self, kind: str, name: str, condition: str, status: str = "True", reason: str = "", timeout_s: float = SETTLE_S
    ) -> Object:
        """The condition of the object once it has the status (and reason) for the present generation."""
        found = self.wait(
            kind,
            name,
            lambda o: _matches(condition_of(o, condition), o["metadata"]["generation"], status, reason),
            f"{condition}={status} {reason}".strip(),
            timeout_s,
        )
        return condition_of(found, condition) or {}

    def wait_settled(self, version: str, timeout_s: float = SETTLE_S) -> Object:
        """UpToDate with ``version`` served, nothing left to do, and every adapter ready."""
        found = self.wait("BaseModel", BASE, lambda o: _settled(o, version), f"settled at {version}", timeout_s)
        for adapter in self.kube.items("LoRAAdapter", self.namespace):
            name = adapter["metadata"]["name"]
            self.wait("LoRAAdapter", name, lambda o: _settled_adapter(o, version), f"settled at {version}", timeout_s)
        return found

    def jobs(self, kind: str = "") -> list[Object]:
        """The Jobs that exist, of one job-kind or all."""
        every = self.kube.items("Job", self.namespace)
        return [j for j in every if not kind or j["metadata"]["labels"].get(labels.JOB_KIND) == kind]

    def evidence(self) -> str:
        """What a failure report needs."""
        return f"=== operator\n{self.operator.log[-6000:]}\n=== pods\n{self.player.logs()[-6000:]}"

    def _get(self, kind: str, name: str) -> Object:
        found = self.kube.get(kind, name, self.namespace)
        if found is None:
            raise AssertionError(f"{kind} {name} is absent")
        return found

    def _apply_adapter(self, name: str, source: Object, data: str, spec: dict[str, Any]) -> Object:
        body = {
            "baseModelRef": {"name": BASE},
            "source": source,
            "data": _splits(data),
            "adaptation": ADAPTATION,
            "gate": GATE,
        }
        return self._apply("LoRAAdapter", name, body | spec)

    def _apply(self, kind: str, name: str, spec: Object) -> Object:
        document = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        return self.kube.apply(document, self.namespace)


def _splits(data: str) -> Object:
    uri = f"pvc://{MODELS_CLAIM}/data/{data}"
    return {split: {"uri": f"{uri}/{split}.jsonl"} for split in ("train", "validation", "test")}


def condition_of(found: Object, kind: str) -> Object | None:
    """The condition of that type, or None."""
    return next((c for c in found.get("status", {}).get("conditions", []) if c["type"] == kind), None)


def _matches(condition: Object | None, generation: int, status: str, reason: str) -> bool:
    if condition is None or condition.get("observedGeneration") != generation:
        return False
    return condition["status"] == status and reason in ("", condition["reason"])


def _holds(found: Object, *kinds: str) -> bool:
    return all(_matches(condition_of(found, k), found["metadata"]["generation"], "True", "") for k in kinds)


def _at_rest(found: Object) -> bool:
    return not any(condition_of(found, k) for k in (conditions.RECONCILING, conditions.STALLED))


def _settled(found: Object, version: str) -> bool:
    served = found.get("status", {}).get("version") == version
    return served and _at_rest(found) and _holds(found, conditions.READY, conditions.UP_TO_DATE, conditions.ROLLED_OUT)


def _settled_adapter(found: Object, version: str) -> bool:
    served = found.get("status", {}).get("servedVersion") == version
    return served and _at_rest(found) and _holds(found, conditions.READY, conditions.UP_TO_DATE)
