"""The generated schemas are structural, bounded and cheap enough, whatever the models say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from readapt_api.schema import crds
from readapt_api.v1alpha1.base_model import BaseModelSpec
from readapt_api.v1alpha1.lora_adapter import LoRAAdapterSpec
from readapt_testing.manifests import base_model, lora_adapter

Schema = dict[str, Any]
FORBIDDEN = ("$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "title", "const", "examples", "discriminator")
KINDS = {definition["spec"]["names"]["kind"]: definition for definition in crds().values()}
SCHEMAS = {k: d["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for k, d in KINDS.items()}


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from walk(schema[name], f"{path}[{name}]")


NODES = [(kind, path, node) for kind, schema in SCHEMAS.items() for path, node in walk(schema)]


def test_both_kinds_are_generated() -> None:
    assert set(SCHEMAS) == {"BaseModel", "LoRAAdapter"}


@pytest.mark.parametrize(("kind", "path", "node"), NODES, ids=lambda value: value if isinstance(value, str) else "")
def test_node_is_structural_and_bounded(kind: str, path: str, node: Schema) -> None:
    """apiextensions: every node has a type, no composition, properties or additionalProperties and not both."""
    assert [key for key in FORBIDDEN if key in node] == []
    assert node["type"] in ("object", "array", "string", "integer", "boolean")
    assert not ("properties" in node and "additionalProperties" in node)
    if node["type"] == "array":
        assert "items" in node
        assert "maxItems" in node
    if node["type"] == "object" and path not in ("", ".metadata"):
        assert "properties" in node or "maxProperties" in node
    if node["type"] == "string" and path not in (".apiVersion", ".kind"):
        assert "maxLength" in node or "enum" in node
    for rule in node.get("x-kubernetes-validations", ()):
        assert rule["message"]
        assert rule["rule"]


@pytest.mark.parametrize(("kind", "path", "node"), [n for n in NODES if "enum" in n[2] and ".spec" in n[1]])
def test_values_of_enums_are_pascal_case(kind: str, path: str, node: Schema) -> None:
    assert [v for v in node["enum"] if not v[0].isupper() or "_" in v or "-" in v] == []


@pytest.mark.parametrize("kind", SCHEMAS)
def test_status_has_no_defaults(kind: str) -> None:
    assert [path for path, node in walk(SCHEMAS[kind]["properties"]["status"]) if "default" in node] == []


def fill(schema: Schema, value: Any) -> Any:
    """What the API server stores: defaults of absent fields, recursively (apiextensions defaulting)."""
    if isinstance(value, list):
        return [fill(schema["items"], item) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    out = dict(value)
    for name, child in schema["properties"].items():
        if name not in out and "default" in child:
            out[name] = child["default"]
        if name in out:
            out[name] = fill(child, out[name])
    return out


@pytest.mark.parametrize(
    ("kind", "manifest", "model"),
    [("BaseModel", base_model(), BaseModelSpec), ("LoRAAdapter", lora_adapter(), LoRAAdapterSpec)],
)
def test_schema_and_models_fill_in_the_same_defaults(kind: str, manifest: Schema, model: Any) -> None:
    spec = manifest["spec"]
    stored = fill(SCHEMAS[kind]["properties"]["spec"], spec)

    assert stored != spec
    assert model.model_validate(stored) == model.model_validate(spec)
