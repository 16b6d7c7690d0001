"""Valid manifests and edits of them, for tables of what the API server accepts and refuses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from readapt_api.v1alpha1 import API_VERSION
from readapt_testing.kube import Object

DIGEST = f"sha256:{'a' * 64}"
OTHER_DIGEST = f"sha256:{'b' * 64}"
REMOVED = object()
"""As the value of an edit: the field is taken out."""
Edits = Mapping[str, Any]


def base_model(name: str = "model") -> Object:
    """The shortest BaseModel with two versions."""
    versions = [{"name": v, "source": {"uri": f"pvc://models/{v}"}} for v in ("v1", "v2")]
    spec = {"store": {"claimName": "store"}, "versions": versions, "version": "v1"}
    return {"apiVersion": API_VERSION, "kind": "BaseModel", "metadata": {"name": name}, "spec": spec}


def lora_adapter(name: str = "adapter") -> Object:
    """The shortest LoRAAdapter with a PEFT adapter and data."""
    source = {"adapter": {"uri": "pvc://models/adapter", "baseVersion": "v1"}}
    data = {split: {"uri": f"pvc://models/{split}.jsonl"} for split in ("train", "validation")}
    spec = {"baseModelRef": {"name": "model"}, "source": source, "data": data}
    return {"apiVersion": API_VERSION, "kind": "LoRAAdapter", "metadata": {"name": name}, "spec": spec}


def edited(document: Object, edits: Edits) -> Object:
    """A copy with values at dotted paths replaced; numbers are list indices."""
    out = copy.deepcopy(document)
    for path, value in edits.items():
        *parents, last = path.split(".")
        node: Any = out
        for part in parents:
            node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
        if value is REMOVED:
            node.pop(last, None)
        elif isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    return out
