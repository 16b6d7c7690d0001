"""The player: a fake node whose pods are really run."""

from __future__ import annotations

import contextlib
import datetime
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import httpx

from readapt_cluster.guardian import Guardian
from readapt_testing.informer import Informer
from readapt_testing.kube import Event, Kube, KubeError, Object
from readapt_testing.player.addresses import Addresses
from readapt_testing.player.pod import Machine, PlayedPod

_HEARTBEAT_S = 10.0


class Player:
    """Plays every pod of one namespace from ``with`` on; at the end it kills what still runs.

    ``claims``: PersistentVolumeClaim name to the folder that stands for it. ``env`` is added to every container below
    its own. A killed player takes all its processes with it.
    """

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        folder: Path,
        claims: Mapping[str, Path],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._kube, self._namespace = kube, namespace
        self._guardian = Guardian()
        self.node = f"player-{uuid.uuid4().hex[:8]}"
        shared = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **(env or {})}
        self._machine = Machine(kube, self.node, folder, dict(claims), shared, Addresses(), self._guardian)
        self._pods: dict[str, PlayedPod] = {}
        self._config_maps: dict[str, Object] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._informers: list[Informer] = []

    def __enter__(self) -> Player:
        self._register()
        self._heart = threading.Thread(target=self._beat, name="node heartbeat", daemon=True)
        self._heart.start()
        for kind, take in (("ConfigMap", self._on_config_map), ("Pod", self._on_pod)):
            self._informers.append(Informer(self._kube, kind, self._namespace, take))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        for informer in self._informers:
            informer.close()
        for pod in self.pods():
            pod.vanish()
        for pod in self.pods():
            pod.join()
        self._heart.join(timeout=30)
        self._kube.delete("Node", self.node)
        self._guardian.close()

    def pods(self) -> list[PlayedPod]:
        """Every pod that was played and still exists."""
        with self._lock:
            return list(self._pods.values())

    def logs(self) -> str:
        """All containers' output so far, for failure reports."""
        files = sorted(self._machine.folder.glob("*/run-*/log"))
        return "\n".join(f"--- {f.parent.parent.name} {f.parent.name}\n{f.read_text(errors='replace')}" for f in files)

    def _on_pod(self, event: Event) -> None:
        uid = event.object["metadata"]["uid"]
        with self._lock:
            played = self._pods.get(uid)
            if event.type == "DELETED":
                self._pods.pop(uid, None)
            elif played is None:
                played = self._pods[uid] = PlayedPod(self._machine, event.object)
                played.start()
        if played is None:
            return
        if event.type == "DELETED":
            played.vanish()
        elif "deletionTimestamp" in event.object["metadata"]:
            played.delete(float(event.object["metadata"].get("deletionGracePeriodSeconds", 0)))

    def _on_config_map(self, event: Event) -> None:
        config_map = None if event.type == "DELETED" else event.object
        for pod in self.pods():
            pod.config_map_changed(event.object["metadata"]["name"], config_map)

    def _register(self) -> None:
        self._kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node}})
        ready = {"type": "Ready", "status": "True", "reason": "Played", "message": "", "lastHeartbeatTime": _now()}
        ready["lastTransitionTime"] = ready["lastHeartbeatTime"]
        self._kube.patch("Node", self.node, {"status": {"conditions": [ready]}}, subresource="status")

    def _beat(self) -> None:
        """Renews the node's lease; without it the node controller would evict the pods."""
        while not self._stopped.is_set():
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.node},
                "spec": {"holderIdentity": self.node, "leaseDurationSeconds": 40, "renewTime": _now(micro=True)},
            }
            with contextlib.suppress(httpx.TransportError, KubeError):
                self._kube.apply(lease, "kube-node-lease")
            self._stopped.wait(_HEARTBEAT_S)


def _now(micro: bool = False) -> str:
    at = datetime.datetime.now(datetime.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")
