"""What both resources use: sources, references and pod settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from readapt_api.bounds import cel
from readapt_api.contract import Contract, Digest

NAME_RULE = (
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 40",
    "metadata.name must be a DNS-1035 label (a-z, 0-9, -; a letter first) of at most 40 characters",
)


def map_list(*keys: str) -> dict[str, Any]:
    """``json_schema_extra`` for a list whose entries are known by ``keys``."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


URI_PATTERN = r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9_@+=,-][A-Za-z0-9._@+=,-]*)+$"
Uri = Annotated[str, StringConstraints(pattern=URI_PATTERN, max_length=512)]
"""``pvc://claim/path``: a file or folder of a PersistentVolumeClaim in the same namespace."""


class Source(Contract):
    """Where content comes from. The uri cannot change; the digest can be set once."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.uri == oldSelf.uri", "uri is immutable: add a new version or a new adapter instead"),
            (
                "!has(oldSelf.digest) || (has(self.digest) && self.digest == oldSelf.digest)",
                "digest can be set once and then neither changed nor removed",
            ),
        )
    )
    uri: Uri = Field(description="pvc://claim/path, in the namespace of the object.")
    digest: Digest | None = Field(
        default=None,
        description="What the content must be (`readapt digest PATH` prints it). Without it the first fetch decides.",
    )


class BaseModelRef(Contract):
    """A BaseModel of the same namespace."""

    name: str = Field(min_length=1, max_length=40)


class ClaimRef(Contract):
    """The store: a PersistentVolumeClaim of the same namespace, ReadWriteMany where there is more than one node."""

    claim_name: str = Field(min_length=1, max_length=253)


class SecretRef(Contract):
    """A Secret of the same namespace."""

    name: str = Field(min_length=1, max_length=253)


class Toleration(Contract):
    """core/v1 Toleration."""

    key: str | None = Field(default=None, max_length=316)
    operator: str | None = Field(default=None, max_length=16)
    value: str | None = Field(default=None, max_length=63)
    effect: str | None = Field(default=None, max_length=32)
    toleration_seconds: int | None = None


Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=24)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
AnnotationValue = Annotated[str, StringConstraints(max_length=1024)]


class Resources(Contract):
    """Requests and limits by resource name."""

    requests: dict[str, Quantity] = Field(default_factory=dict, json_schema_extra={"maxProperties": 8})
    limits: dict[str, Quantity] = Field(default_factory=dict, json_schema_extra={"maxProperties": 8})


class PodSettings(Contract):
    """What may be said about the pods. Security settings are not among it."""

    resources: Resources | None = None
    node_selector: dict[str, LabelValue] = Field(default_factory=dict, json_schema_extra={"maxProperties": 16})
    tolerations: tuple[Toleration, ...] = Field(
        default=(), max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    priority_class_name: str | None = Field(default=None, max_length=253)
    runtime_class_name: str | None = Field(default=None, max_length=253)
    image_pull_secrets: tuple[SecretRef, ...] = Field(default=(), max_length=8, json_schema_extra=map_list("name"))
    labels: dict[str, LabelValue] = Field(default_factory=dict, json_schema_extra={"maxProperties": 16})
    annotations: dict[str, AnnotationValue] = Field(default_factory=dict, json_schema_extra={"maxProperties": 16})


class ObjectMeta(Contract):
    """The part of metav1.ObjectMeta that decisions use."""

    model_config = ConfigDict(extra="ignore")
    name: str
    namespace: str = "default"
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    annotations: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
