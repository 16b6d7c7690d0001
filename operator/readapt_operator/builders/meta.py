"""Metadata of children: names, labels, owner references."""

from __future__ import annotations

from dataclasses import dataclass

from readapt_api import labels
from readapt_api.digest import digest_of, hex_of
from readapt_api.v1alpha1 import API_VERSION
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource
from readapt_operator.kube.resources import Doc

_HASH_CHARS = 10


@dataclass(frozen=True, slots=True)
class Owner:
    """The object that a child belongs to and dies with."""

    kind: str
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, resource: BaseModelResource | LoRAAdapterResource) -> Owner:
        meta = resource.metadata
        return cls(resource.kind, meta.namespace, meta.name, meta.uid)

    def reference(self) -> Doc:
        """metav1.OwnerReference, without blockOwnerDeletion: that needs rights on finalizers on some clusters."""
        return {"apiVersion": API_VERSION, "kind": self.kind, "name": self.name, "uid": self.uid, "controller": True}


def child_meta(owner: Owner, name: str, base: str, extra: dict[str, str] | None = None) -> Doc:
    """ObjectMeta of a child of ``owner`` that serves the BaseModel ``base``."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": {labels.MANAGED_BY: labels.READAPT, labels.BASE: base, **(extra or {})},
        "ownerReferences": [owner.reference()],
    }


def job_name(owner: Owner, kind: str, input_hash: str, attempt: int, retry: str) -> str:
    """The same wish gives the same name, at most 40 + 1 + 7 + 1 + 10 characters."""
    wish = {"inputHash": input_hash, "uid": owner.uid, "attempt": attempt, **({"retry": retry} if retry else {})}
    return f"{owner.name}-{kind}-{hex_of(digest_of(wish))[:_HASH_CHARS]}"


def deployment_name(base: str, revision: str) -> str:
    return f"{base}-{revision}"


def set_name(base: str, revision: str, shard: int) -> str:
    return f"{base}-{revision}-set-{shard}"


def controller_uid(body: Doc) -> str:
    """uid of the controlling owner of a child, or the empty string."""
    references = body["metadata"].get("ownerReferences", [])
    return next((r["uid"] for r in references if r.get("controller")), "")
