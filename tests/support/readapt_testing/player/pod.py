"""The life of one played pod: bind → volumes → run, probe, restart → end; each pod in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from readapt_cluster.guardian import Guardian
from readapt_testing.kube import Kube, KubeError, Object, path_of
from readapt_testing.player import status
from readapt_testing.player.addresses import Addresses, Link
from readapt_testing.player.probes import Probe
from readapt_testing.player.sandbox import ContainerSpec, Sandbox
from readapt_testing.player.volumes import NotYet, Unplayable, Volumes

_IDLE_S = 3600.0
_MAX_BACKOFF_S = 10.0
_AWAY_S = 0.5


@dataclass(frozen=True, slots=True)
class Machine:
    """What all pods of a player share."""

    kube: Kube
    node: str
    folder: Path
    claims: Mapping[str, Path]
    env: Mapping[str, str]
    addresses: Addresses
    guardian: Guardian


class PlayedPod:
    """Orders come from the player's watch (``delete``, ``vanish``, ``config_map_changed``)."""

    def __init__(self, machine: Machine, pod: Object) -> None:
        self.machine, self.pod = machine, pod
        self.name, self.uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        self.folder = machine.folder / f"{self.name}.{self.uid[:8]}"
        self.volumes = Volumes(pod, self.folder / "volumes", machine.claims, machine.kube)
        self.link: Link = machine.addresses.take()
        self.sandbox: Sandbox | None = None
        self.readiness_held = threading.Event()
        """Tests set it to keep the pod from becoming ready."""
        self._wake = threading.Event()
        self._away = threading.Event()
        self._volumes_lock = threading.Lock()
        self._deadline: float | None = None
        self._gone = False
        self._since: dict[str, str] = {}
        self._started_at = status.now()
        self._last: Object | None = None
        self._thread = threading.Thread(target=self._live, name=f"pod {self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def delete(self, grace_s: float) -> None:
        """The API server marked the pod for deletion; a shorter grace period replaces a longer one."""
        deadline = time.monotonic() + grace_s
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        self._wake.set()

    def vanish(self) -> None:
        """The object is gone (deleted by force): the process must go at once."""
        self._gone = True
        self.delete(0.0)

    def config_map_changed(self, name: str, config_map: Object | None) -> None:
        with self._volumes_lock:
            self.volumes.config_map_changed(name, config_map)
        self._wake.set()

    def join(self) -> None:
        self._thread.join(timeout=60)
        if self._thread.is_alive():
            raise TimeoutError(f"pod {self.name} does not end")

    def _live(self) -> None:
        try:
            self._bind()
            if self._await_volumes():
                self._run_until_over()
            self._remove()
        except KubeError as error:
            # Somebody else removed the pod (or its namespace) in between; without an object there is nothing to play.
            if error.code not in (404, 409):
                raise
        finally:
            if self.sandbox is not None:
                self.sandbox.kill()
                self.sandbox.join()

    def _bind(self) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": self.name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.machine.node},
        }
        if self.pod["spec"].get("nodeName"):
            return
        self._send("POST", "binding", body)

    def _await_volumes(self) -> bool:
        """False when the pod was deleted before its volumes were complete."""
        while self._deadline is None:
            self._wake.clear()
            try:
                with self._volumes_lock:
                    self.volumes.prepare()
                return True
            except NotYet as missing:
                self._report("Pending", status.waiting("ContainerCreating", str(missing)), 0)
            self._wake.wait(_IDLE_S)
        return False

    def _run_until_over(self) -> None:
        restarts = 0
        while True:
            code = self._run_once(restarts)
            if self._leaving() or not self._restarts(code):
                break
            restarts += 1
            self._report("Running", status.waiting("CrashLoopBackOff"), restarts)
            self._pause(min(2.0 ** (restarts - 1), _MAX_BACKOFF_S))
            if self._leaving():
                break
        phase = "Succeeded" if code == 0 else "Failed"
        self._report(phase, self._last or status.waiting("ContainerCreating"), restarts)

    def _leaving(self) -> bool:
        return self._deadline is not None

    def _restarts(self, code: int) -> bool:
        policy = self.pod["spec"].get("restartPolicy", "Always")
        return policy == "Always" or (policy == "OnFailure" and code != 0)

    def _run_once(self, restarts: int) -> int:
        """One run of the container; its exit code."""
        container = self._container()
        spec = self._container_spec(container, restarts)
        self._report("Pending", status.waiting("ContainerCreating"), restarts)
        started_at = status.now()
        self.sandbox = sandbox = Sandbox.start(spec, self.link, self.machine.guardian, self._wake.set)
        watch = _Watch(self, container, restarts, started_at)
        while sandbox.exit_code is None:
            self._wake.clear()
            watch.step()
            if sandbox.exit_code is None:
                self._wake.wait(watch.seconds_left())
        sandbox.join()
        code = sandbox.exit_code
        self._last = status.terminated(code, sandbox.termination_message, started_at)
        return code

    def _container(self) -> Object:
        spec = self.pod["spec"]
        if len(spec["containers"]) != 1 or spec.get("initContainers"):
            raise Unplayable(f"pod {self.name}: exactly one container is played")
        container: Object = spec["containers"][0]
        if not container.get("command") or container.get("envFrom"):
            raise Unplayable(f"pod {self.name}: a command and plain env are needed")
        return container

    def _container_spec(self, container: Object, restarts: int) -> ContainerSpec:
        env = {e["name"]: self._env_value(e) for e in container.get("env", [])}
        security = container.get("securityContext") or {}
        return ContainerSpec(
            argv=(*container["command"], *container.get("args", [])),
            env={**self.machine.env, **env, "HOSTNAME": self.name},
            mounts=self.volumes.mounts(container),
            folder=self.folder / f"run-{restarts}",
            read_only_root=bool(security.get("readOnlyRootFilesystem")),
            working_dir=container.get("workingDir", "/"),
        )

    def _env_value(self, entry: Object) -> str:
        if "valueFrom" not in entry:
            return str(entry.get("value", ""))
        field = entry["valueFrom"].get("fieldRef", {}).get("fieldPath")
        known: dict[str, str] = {"metadata.name": self.name, "metadata.namespace": self.pod["metadata"]["namespace"]}
        known["status.podIP"] = self.link.address
        if field not in known:
            raise Unplayable(f"env {entry}")
        return known[field]

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._deadline is None and (left := end - time.monotonic()) > 0:
            self._wake.clear()
            self._wake.wait(left)

    def _report(self, phase: str, state: Object, restarts: int, ready: bool = False, started: bool = False) -> None:
        if self._gone:
            return
        container = status.container_status(self.pod, state, restarts, ready, started, self._last)
        body = status.pod_status(phase, container, self.link.address, self._started_at, self._since)
        body["metadata"] = {"uid": self.uid}
        self._send("PATCH", "status", body, "application/strategic-merge-patch+json")

    def _send(self, method: str, subresource: str, body: Object, content_type: str = "application/json") -> None:
        """A write about this pod, repeated while the API server is away."""
        path = path_of("Pod", self.pod["metadata"]["namespace"], self.name, subresource)
        while not self._gone:
            try:
                self.machine.kube.request(method, path, json_body=body, content_type=content_type)
                return
            except httpx.TransportError:
                self._away.wait(_AWAY_S)
            except KubeError as error:
                if not error.may_pass:
                    raise
                self._away.wait(_AWAY_S)

    def _remove(self) -> None:
        """The kubelet's last word on a deleted pod; a finished pod that nobody deleted stays."""
        if self._deadline is None:
            while self._deadline is None:
                self._wake.clear()
                self._wake.wait(_IDLE_S)
        if self._gone:
            return
        self._send("DELETE", "", {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}})


class _Watch:
    """Probes, reports and terminates one run of a container; ``step`` is called whenever something may be due."""

    def __init__(self, played: PlayedPod, container: Object, restarts: int, started_at: str) -> None:
        self._pod, self._container = played, container
        self._restarts, self._started_at = restarts, started_at
        ports = {p["name"]: p["containerPort"] for p in container.get("ports", []) if "name" in p}
        kinds = ("startupProbe", "readinessProbe", "livenessProbe")
        self._probes = {k: Probe(container[k], played.link.address, ports) for k in kinds if k in container}
        self._reported: tuple[bool, bool] | None = None
        self._terminated = self._killed = False

    def step(self) -> None:
        pod = self._pod
        if pod._deadline is not None:
            self._terminate(pod._deadline)
        for probe in self._active():
            probe.run_if_due()
        self._judge()
        state = (self._ready(), self._started())
        if state != self._reported:
            pod._report("Running", status.running(self._started_at), self._restarts, *state)
            self._reported = state

    def seconds_left(self) -> float:
        due = [probe.seconds_left() for probe in self._active()]
        if self._pod._deadline is not None and not self._killed:
            due.append(max(0.0, self._pod._deadline - time.monotonic()))
        return min(due, default=_IDLE_S)

    def _active(self) -> list[Probe]:
        """Startup first, alone; then readiness, and liveness until the pod is told to end."""
        if not self._started():
            return [self._probes["startupProbe"]]
        wanted = ["readinessProbe"] if self._pod._deadline is not None else ["readinessProbe", "livenessProbe"]
        return [self._probes[k] for k in wanted if k in self._probes]

    def _started(self) -> bool:
        probe = self._probes.get("startupProbe")
        return probe is None or probe.passed is True

    def _ready(self) -> bool:
        probe = self._probes.get("readinessProbe")
        passed = self._started() and (probe is None or probe.passed is True)
        return passed and not self._pod.readiness_held.is_set()

    def _judge(self) -> None:
        """A failed startup or liveness probe ends the container."""
        failed = any(self._probes[k].passed is False for k in ("startupProbe", "livenessProbe") if k in self._probes)
        if failed and not self._terminated and self._pod.sandbox is not None:
            self._pod.sandbox.kill()
            self._terminated = self._killed = True

    def _terminate(self, deadline: float) -> None:
        sandbox = self._pod.sandbox
        if sandbox is None or self._killed:
            return
        if not self._terminated:
            self._terminated = True
            self._pre_stop(sandbox, deadline)
            sandbox.terminate()
        if time.monotonic() >= deadline:
            sandbox.kill()
            self._killed = True

    def _pre_stop(self, sandbox: Sandbox, deadline: float) -> None:
        hook = (self._container.get("lifecycle") or {}).get("preStop")
        left = deadline - time.monotonic()
        if not hook or left <= 0:
            return
        if "sleep" in hook:
            threading.Event().wait(min(left, hook["sleep"]["seconds"]))
        elif "exec" in hook:
            sandbox.execute(hook["exec"]["command"], left)
        else:
            raise Unplayable(f"preStop {hook}")
