"""kubectl, as a user runs it, against one kubeconfig and no other."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readapt_api import labels
from readapt_demo.manifests import NAMESPACE


class KubectlFailed(RuntimeError):
    """kubectl ended with an error; the message is its own."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Runs ``kubectl --kubeconfig FILE``; everything is in the demo's namespace unless told otherwise."""

    program: Path
    kubeconfig: Path

    def __call__(self, *words: str, stdin: str | None = None, timeout_s: float = 60.0) -> str:
        """Standard output; raises KubectlFailed with standard error."""
        command = [str(self.program), "--kubeconfig", str(self.kubeconfig), "--namespace", NAMESPACE, *words]
        try:
            done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise KubectlFailed(f"kubectl {' '.join(words)}: no answer within {timeout_s:g} s") from error
        if done.returncode:
            raise KubectlFailed(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, manifest: str) -> str:
        """``kubectl apply -f -``."""
        return self("apply", "-f", "-", stdin=manifest)

    def get(self, kind: str, name: str = "", *words: str) -> dict[str, Any]:
        """The object or list as a document."""
        found: dict[str, Any] = json.loads(self("get", kind, *([name] if name else []), *words, "-o", "json"))
        return found

    def wait(self, what: str, condition: str, timeout_s: int) -> None:
        """``kubectl wait --for=CONDITION``."""
        self("wait", f"--for={condition}", what, f"--timeout={timeout_s}s", timeout_s=timeout_s + 30)

    def job_progress(self) -> list[str]:
        """The last words of every Job that runs, as ``kubectl logs`` shows them."""
        running = ("--selector", labels.JOB_KIND, "--field-selector", "status.phase=Running")
        lines = []
        for pod in self.get("pods", "", *running)["items"]:
            try:
                said = json.loads(self("logs", pod["metadata"]["name"], "--tail=1") or "{}")
            except (KubectlFailed, ValueError):
                continue  # gone meanwhile, or not one of our lines
            words = said.get("message") or said.get("doing") or said.get("event", "starting")
            job = pod["metadata"]["labels"][labels.JOB_NAME]
            adapter = said.get("adapter")  # a Job may do others' work, too
            if adapter and not job.startswith(f"{adapter}-"):
                words = f"{adapter}: {words}"
            lines.append(f"Job {job}: {words}" + (f" ({said['percent']} %)" if "percent" in said else ""))
        return lines

    def overview(self) -> str:
        """What a user sees: ``kubectl get rbm,rla``."""
        return self("get", "rbm,rla")
