"""Models to structural schemas: ``python -m readapt_api.schema DIR...`` writes the CustomResourceDefinitions.

pydantic's JSON Schema has references, ``anyOf null``, titles and ``additionalProperties: false``; a structural schema
(apiextensions.k8s.io/v1) has none of these. A tool of the developers: it needs PyYAML, the package does not.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from readapt_api.v1alpha1 import GROUP, VERSION
from readapt_api.v1alpha1.base_model import BaseModelResource
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterResource

_TYPES = ("type", "format", "description", "enum", "default", "pattern")
_BOUNDS = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_KEPT = frozenset((*_TYPES, *_BOUNDS))
_NUMBER_LIKE = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
Schema = dict[str, Any]


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of a resource model, without ``metadata``."""
    document = model.model_json_schema(by_alias=True)
    schema = _convert(document, document.get("$defs", {}))
    schema["properties"]["metadata"] = {"type": "object"}
    # Status is written by the operator alone; defaults there would make what it reads differ from what it wrote.
    _drop_defaults(schema["properties"]["status"])
    for field in ("apiVersion", "kind"):
        schema["properties"][field] = {"type": "string"}
    schema["required"] = ["spec"]
    return schema


def _drop_defaults(schema: Schema) -> None:
    schema.pop("default", None)
    for child in (*schema.get("properties", {}).values(), schema.get("items")):
        if child is not None:
            _drop_defaults(child)


def _convert(node: Schema, definitions: Schema) -> Schema:
    node = _resolve(node, definitions)
    out: Schema = {k: v for k, v in node.items() if k in _KEPT or k.startswith("x-kubernetes-")}
    if "const" in node:
        out |= {"type": "string", "enum": [node["const"]]}
    if out.get("type") == "array":
        out["items"] = _convert(node["items"], definitions)
    elif "properties" in node:
        out["properties"] = {k: _convert(v, definitions) for k, v in node["properties"].items()}
        if node.get("required"):
            out["required"] = sorted(node["required"])
    elif out.get("type") == "object":
        out["additionalProperties"] = _convert(node["additionalProperties"], definitions)
    if out.get("type") == "integer":
        out.setdefault("format", "int64")
    if isinstance(out.get("default"), dict):
        out["default"] = _own_default(out)
    if out.get("default", ...) in (None, []) or (out.get("default") == {} and "properties" not in out):
        out.pop("default", None)
    return out


def _own_default(schema: Schema) -> Schema:
    """What a default object says beyond its fields' own defaults, which the API server fills in by itself."""
    fields = schema.get("properties", {})
    return {
        k: v for k, v in schema["default"].items() if v not in (None, [], {}) and "default" not in fields.get(k, {})
    }


def _resolve(node: Schema, definitions: Schema) -> Schema:
    """Follows references and unwraps ``anyOf [X, null]``; keys beside them win, CEL rules add up."""
    if "anyOf" in node:
        (inner,) = [n for n in node["anyOf"] if n.get("type") != "null"]
        return _merge(_resolve(inner, definitions), node, "anyOf")
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return _merge(_resolve(target, definitions), node, "$ref")
    return node


def _merge(inner: Schema, outer: Schema, drop: str) -> Schema:
    key = "x-kubernetes-validations"
    rules = [*inner.get(key, []), *outer.get(key, [])]
    merged = {**inner, **{k: v for k, v in outer.items() if k != drop}}
    return {**merged, key: rules} if rules else merged


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Schema:
    return {"name": name, "type": kind, "jsonPath": path, "priority": priority}


def _condition_column(name: str, field: str = "status") -> Schema:
    condition = "Ready" if name == "Ready" else "UpToDate"
    return _column(name, f'.status.conditions[?(@.type=="{condition}")].{field}')


_AGE = _column("Age", ".metadata.creationTimestamp", "date")


def base_model_crd() -> Schema:
    """CustomResourceDefinition of BaseModel."""
    columns = [
        _column("Version", ".status.version"),
        _column("Target", ".spec.version"),
        _column("Adapters", ".status.adaptersReady"),
        _condition_column("Ready"),
        _condition_column("UpToDate"),
        _condition_column("Reason", "reason"),
        _AGE,
        _column("Revision", ".status.revision", priority=1),
        _column("Set", ".status.set", priority=1),
    ]
    scale = {
        "specReplicasPath": ".spec.serving.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    return _crd("BaseModel", "basemodels", "rbm", structural(BaseModelResource), columns, {"scale": scale})


def lora_adapter_crd() -> Schema:
    """CustomResourceDefinition of LoRAAdapter."""
    columns = [
        _column("Base", ".spec.baseModelRef.name"),
        _column("Version", ".status.servedVersion"),
        _column("Origin", ".status.origin"),
        _column("Score", ".status.score"),
        _column("Verified", ".status.verified"),
        _condition_column("Ready"),
        _condition_column("UpToDate"),
        _condition_column("Reason", "reason"),
        _AGE,
        _column("Digest", ".status.servedDigest", priority=1),
        _column("Source", ".status.sourceDigest", priority=1),
    ]
    return _crd("LoRAAdapter", "loraadapters", "rla", structural(LoRAAdapterResource), columns, {})


def _crd(kind: str, plural: str, short: str, schema: Schema, columns: list[Schema], subresources: Schema) -> Schema:
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": [short],
        "categories": ["readapt"],
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "subresources": {"status": {}, **subresources},
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def crds() -> dict[str, Schema]:
    """File name to definition."""
    return {"basemodels.yaml": base_model_crd(), "loraadapters.yaml": lora_adapter_crd()}


class _Dumper(yaml.SafeDumper):
    """Quotes strings that other YAML parsers take for numbers (PyYAML reads ``2e-4`` as a string, Go as a number)."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _NUMBER_LIKE.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)


def render(definition: Schema) -> str:
    """YAML of a definition."""
    return str(yaml.dump(definition, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def main(folders: list[str]) -> None:
    """Writes all definitions into each folder."""
    for folder in folders:
        for name, definition in crds().items():
            (Path(folder) / name).write_text(render(definition))


if __name__ == "__main__":
    main(sys.argv[1:])
