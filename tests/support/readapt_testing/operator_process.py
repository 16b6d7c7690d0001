"""The real operator as a process of its own, so that it can be killed like one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from readapt_cluster.guardian import Guardian
from readapt_testing.fault_proxy import FaultProxy, Trigger

FAST = {
    "READAPT_RESYNC_SECONDS": "20",
    "READAPT_PROPAGATION_SECONDS": "0.5",
    "READAPT_LEASE_SECONDS": "6",
    "READAPT_RETRY_SECONDS": "1",
    "READAPT_PROBE_PORT": "0",
}
"""What a test does not want to wait for."""


class OperatorProcess:
    """Watches one namespace, where its Lease and Secret are too. Its output goes to ``folder/<name>.log``."""

    def __init__(
        self,
        kubeconfig: Path,
        namespace: str,
        folder: Path,
        image: str = "played",
        name: str = "operator",
        env: Mapping[str, str] | None = None,
        proxy: FaultProxy | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._kubeconfig = _through(kubeconfig, proxy, folder / f"{name}.kubeconfig") if proxy else kubeconfig
        self._proxy = proxy
        self._log = folder / f"{name}.log"
        self._env = {
            **FAST,
            "READAPT_RUNTIME_IMAGE": image,
            "READAPT_NAMESPACES": namespace,
            "READAPT_NAMESPACE": namespace,
            "READAPT_IDENTITY": name,
            **(env or {}),
        }
        self._guardian = Guardian()
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def __enter__(self) -> OperatorProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._guardian.close()

    @property
    def log(self) -> str:
        """Everything that all its runs have written."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the operator does not run")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Another run; the one before must have ended."""
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError("the operator runs already")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("READAPT_")}
        environment |= {"KUBECONFIG": str(self._kubeconfig), "PYTHONUNBUFFERED": "1", "NO_PROXY": "*", **self._env}
        with self._log.open("ab") as log:
            command = [str(Path(sys.executable).parent / "readapt-operator")]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        self._guardian.watch(self._process.pid)
        self.starts += 1

    def kill(self) -> None:
        """SIGKILL; returns when it is gone. Safe to call twice."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self._end(signal.SIGTERM)
        return self.exit_code or 0

    def kill_after(self, trigger: Trigger) -> None:
        """Arms the proxy: SIGKILL once the trigger's write has been answered; the answer never arrives."""
        if self._proxy is None:
            raise RuntimeError("kill_after needs the proxy")
        self._proxy.arm(trigger, lambda: os.kill(self.pid, signal.SIGKILL))

    def await_death(self, trigger: Trigger, timeout_s: float) -> None:
        """Returns when the trigger fired and the process is gone.

        Raises TimeoutError when the trigger did not fire: an injection that never happened proves nothing.
        """
        if not trigger.fired.wait(timeout_s):
            raise TimeoutError(f"no {trigger.method} {trigger.path} (number {trigger.nth}) within {timeout_s:.0f} s")
        self._end(signal.SIGKILL)
        if self.exit_code != -signal.SIGKILL:
            raise AssertionError(f"the operator ended with {self.exit_code} before it was killed")

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(timeout=60)
        self._guardian.forget(self._process.pid)


def _through(kubeconfig: Path, proxy: FaultProxy, path: Path) -> Path:
    """The same user (it must have a token), by way of the proxy."""
    document = json.loads(kubeconfig.read_text())
    document["clusters"][0]["cluster"] = {"server": proxy.url}
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path
