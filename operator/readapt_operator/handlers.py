"""kopf's part: from any event to the key of the base that it concerns. No decisions, no patches, nothing returned.

Children are watched by label, on the server's side; EndpointSlices carry the labels of their Service. Handlers of
events are coroutines: kopf runs plain functions in threads, and the queue is not safe for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from readapt_api import labels
from readapt_api.v1alpha1 import GROUP, VERSION
from readapt_operator.kube.connect import kopf_credentials
from readapt_operator.kube.resources import DEPLOYMENTS, ENDPOINT_SLICES, JOBS, Resource
from readapt_operator.loop import key_of
from readapt_operator.queue import Key
from readapt_operator.settings import Settings

Enqueue = Callable[[Key, float], None]
COALESCE_S = 0.1
_OURS = f"{labels.MANAGED_BY}={labels.READAPT}"
_CHILDREN: tuple[Resource, ...] = (JOBS, DEPLOYMENTS, ENDPOINT_SLICES)


def register(enqueue: Enqueue) -> kopf.OperatorRegistry:
    """A registry of its own: nothing global."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf_credentials()

    async def owner_changed(body: Any, **_: Any) -> None:
        key = key_of(body)
        if key is not None:
            enqueue(key, COALESCE_S)

    async def child_changed(body: Any, **_: Any) -> None:
        meta = body["metadata"]
        base = meta.get("labels", {}).get(labels.BASE)
        if base:
            enqueue(Key(meta["namespace"], base), COALESCE_S)

    for plural in ("basemodels", "loraadapters"):
        kopf.on.event(GROUP, VERSION, plural, registry=registry, id=plural)(owner_changed)
    for child in _CHILDREN:
        group, _, version = child.api_version.rpartition("/")
        kopf.on.event(group, version, child.plural, registry=registry, id=child.plural)(child_changed)
    return registry


def kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """Bounded waits everywhere, nothing posted, nothing stored in objects, nothing scanned."""
    out = kopf.OperatorSettings()
    out.peering.standalone = True
    out.posting.enabled = False
    out.scanning.disabled = True
    # Watches stall silently: the server ends them, the client gives up on them.
    out.watching.server_timeout = 300
    out.watching.client_timeout = 310
    out.watching.connect_timeout = 30
    out.watching.reconnect_backoff = 0.5
    out.networking.request_timeout = 30
    out.networking.connect_timeout = 10
    # Half an hour of an absent API server is waited for, not crashed on.
    out.networking.error_backoffs = (1, 1, 2, 3, 5, 8, *([10] * 180))
    out.process.ultimate_exiting_timeout = 10
    out.queueing.exit_timeout = 1
    for child in _CHILDREN:
        group, _, version = child.api_version.rpartition("/")
        out.watching.label_selectors[group, version, child.plural] = _OURS
    return out
