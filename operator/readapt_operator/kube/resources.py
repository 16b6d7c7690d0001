"""The kinds that the operator reads and writes, and where the API server keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Doc = dict[str, Any]
"""An object as JSON."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One namespaced resource."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """URL path of a collection (of one or of all namespaces) or of one object."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        place = f"/namespaces/{namespace}" if namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{self.api_version}{place}/{self.plural}{tail}"


BASE_MODELS = Resource("readapt.dev/v1alpha1", "BaseModel", "basemodels")
LORA_ADAPTERS = Resource("readapt.dev/v1alpha1", "LoRAAdapter", "loraadapters")
JOBS = Resource("batch/v1", "Job", "jobs")
CONFIG_MAPS = Resource("v1", "ConfigMap", "configmaps")
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments")
SERVICES = Resource("v1", "Service", "services")
PODS = Resource("v1", "Pod", "pods")
ENDPOINT_SLICES = Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
SECRETS = Resource("v1", "Secret", "secrets")
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")
EVENTS = Resource("v1", "Event", "events")
BY_KIND = {
    r.kind: r
    for r in (
        *(BASE_MODELS, LORA_ADAPTERS, JOBS, CONFIG_MAPS, DEPLOYMENTS, SERVICES),
        *(PODS, ENDPOINT_SLICES, SECRETS, LEASES, EVENTS),
    )
}


def resource_of(body: Doc) -> Resource:
    """The resource that a document says it is of."""
    return BY_KIND[body["kind"]]
