"""HTTP probes with the kubelet's counting."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import httpx

from readapt_testing.kube import Object
from readapt_testing.player.volumes import Unplayable


@dataclass(slots=True)
class Probe:
    """One probe of one container run; ``passed`` is None until a threshold was reached."""

    spec: Object
    address: str
    ports: dict[str, int]
    passed: bool | None = None
    _streak: int = 0
    _last: bool | None = None
    _due: float = field(init=False)

    def __post_init__(self) -> None:
        if "httpGet" not in self.spec:
            raise Unplayable(f"probe {self.spec}")
        self._due = time.monotonic() + self.spec.get("initialDelaySeconds", 0)

    def seconds_left(self) -> float:
        """Until it is due; 0 when it is."""
        return max(0.0, self._due - time.monotonic())

    def run_if_due(self) -> None:
        """Asks once when it is time to."""
        if self.seconds_left() > 0:
            return
        self._due = time.monotonic() + self.spec.get("periodSeconds", 10)
        answer = self._ask()
        self._streak = self._streak + 1 if answer == self._last else 1
        self._last = answer
        threshold = self.spec.get("successThreshold", 1) if answer else self.spec.get("failureThreshold", 3)
        if self._streak >= threshold:
            self.passed = answer

    def _ask(self) -> bool:
        get = self.spec["httpGet"]
        port = get["port"] if isinstance(get["port"], int) else self.ports[get["port"]]
        url = f"http://{get.get('host', self.address)}:{port}{get.get('path', '/')}"
        try:
            timeout = self.spec.get("timeoutSeconds", 1)
            return 200 <= httpx.get(url, timeout=timeout, trust_env=False).status_code < 400
        except httpx.TransportError:
            return False
