"""What the operator is told by its environment; one immutable value, printed at start."""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from readapt_api.errors import Terminal

_NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")


class BadSettings(Terminal):
    """The environment does not describe an operator."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Durations in seconds."""

    runtime_image: str
    """Of Job and serving pods; part of the revision."""
    namespace: str
    """Its own: the Lease and the signing key live there."""
    namespaces: tuple[str, ...] = ()
    """What it watches; empty: all."""
    identity: str = "readapt-operator"
    """Holder of the Lease; a pod's name. Two operators must differ."""
    resync_s: float = 180.0
    propagation_s: float = 3.0
    """From EndpointSlices that list only new pods to the draining of old ones."""
    lease_s: float = 15.0
    retry_s: float = 10.0
    """Delay before a Job's second attempt; doubles with each further one."""
    drain_limit_s: float = 600.0
    """Old pods with connections are kept no longer than this."""
    probe_port: int = 8090
    """0: none."""
    request_timeout_s: float = 10.0
    pod_timeout_s: float = 2.0
    admin_port: int = 8081

    def __post_init__(self) -> None:
        if not self.runtime_image:
            raise BadSettings("READAPT_RUNTIME_IMAGE must name the image of Job and serving pods")
        for namespace in (self.namespace, *self.namespaces):
            if not _NAMESPACE.match(namespace):
                raise BadSettings(f"not the name of a namespace: {namespace!r}")
        positive = (self.resync_s, self.lease_s, self.retry_s, self.drain_limit_s, self.request_timeout_s)
        if min(positive) <= 0 or self.propagation_s < 0 or not 0 <= self.probe_port < 65536:
            raise BadSettings("durations must be positive and ports below 65536")

    def __str__(self) -> str:
        return " ".join(f"{key}={value!r}" for key, value in asdict(self).items())


def from_environment(env: Mapping[str, str] = os.environ, own_namespace: str | None = None) -> Settings:
    """Reads READAPT_*; raises BadSettings with what is wrong."""
    listed = tuple(part.strip() for part in env.get("READAPT_NAMESPACES", "").split(",") if part.strip())
    namespace = env.get("READAPT_NAMESPACE") or own_namespace
    if not namespace:
        raise BadSettings("READAPT_NAMESPACE must name the operator's own namespace")
    return Settings(
        runtime_image=env.get("READAPT_RUNTIME_IMAGE", ""),
        namespace=namespace,
        namespaces=listed,
        identity=env.get("READAPT_IDENTITY") or socket.gethostname(),
        resync_s=_number(env, "READAPT_RESYNC_SECONDS", 180.0),
        propagation_s=_number(env, "READAPT_PROPAGATION_SECONDS", 3.0),
        lease_s=_number(env, "READAPT_LEASE_SECONDS", 15.0),
        retry_s=_number(env, "READAPT_RETRY_SECONDS", 10.0),
        drain_limit_s=_number(env, "READAPT_DRAIN_LIMIT_SECONDS", 600.0),
        probe_port=int(_number(env, "READAPT_PROBE_PORT", 8090)),
    )


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadSettings(f"{name} must be a number, not {text!r}")
    return number
