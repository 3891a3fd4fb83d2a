"""What a CustomResourceDefinition says of its objects, held to as an API server does.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions: structural schemas,
their defaults, and fieldValidation=Strict for fields that they do not have. Rules in CEL are not worked out: an object
that has a field with one is refused, for this could accept what an API server would not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.needs import lacking

Schema = Mapping[str, Any]
_CHECKOUT = Path(__file__).parents[3]
_ROOT_FIELDS = {"apiVersion", "kind", "metadata"}
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
_BITS: Mapping[str, int] = {"int32": 32, "int64": 64}
_KNOWN = {
    *("type", "description", "properties", "additionalProperties", "items", "required", "enum", "default", "pattern"),
    *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("format", "anyOf", "nullable"),
}


def kuberay_crds() -> list[dict[str, Any]]:
    """Return KubeRay's CustomResourceDefinitions. Ends the test where there are none."""
    folder = crds_folder()
    if not folder.is_dir():
        lacking(f"KubeRay's CRDs are not in {folder}: set KUBERAY_CRDS to a folder with them")
    return [_load(file) for file in sorted(folder.glob("*.yaml"))]


def crds_folder() -> Path:
    """Return where KubeRay's CustomResourceDefinitions are, if they are anywhere."""
    return Path(os.environ.get("KUBERAY_CRDS") or _CHECKOUT.parent / "shared" / "kuberay-crds")


@cache
def _load(file: Path) -> dict[str, Any]:
    definition: dict[str, Any] = yaml.load(file.read_text(), yaml.CSafeLoader)
    return definition


def schema_of(definition: Mapping[str, Any], version: str) -> Schema:
    """Return the schema of one version of a kind."""
    (found,) = (each for each in definition["spec"]["versions"] if each["name"] == version)
    schema: Schema = found["schema"]["openAPIV3Schema"]
    return schema


def unknown_fields(schema: Schema, value: Any) -> list[str]:
    """Return the paths of fields that the schema does not have; of the metadata, nothing is said here."""
    return [path for key, each in value.items() if key not in _ROOT_FIELDS for path in _unknown(schema, key, each, key)]


def mistakes(schema: Schema, value: Any) -> list[str]:
    """Return what is wrong with an object, in the words of an API server."""
    return list(_mistakes(schema, {key: each for key, each in value.items() if key != "metadata"}, ""))


def with_defaults(schema: Schema, value: Any) -> Any:
    """Return an object with the defaults of the fields that it leaves out."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        filled = {
            key: each["default"] for key, each in properties.items() if "default" in each and key not in value
        } | value
        more = schema.get("additionalProperties", {})
        return {key: with_defaults(properties.get(key, more or {}), each) for key, each in filled.items()}
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), each) for each in value]
    return value


def _unknown(schema: Schema, key: str, value: Any, path: str) -> Iterator[str]:
    """Yield what is unknown at and below one field of an object."""
    if key in schema.get("properties", {}):
        yield from _unknown_below(schema["properties"][key], value, path)
    elif isinstance(schema.get("additionalProperties"), Mapping):
        yield from _unknown_below(schema["additionalProperties"], value, path)
    elif not schema.get("x-kubernetes-preserve-unknown-fields"):
        yield path


def _unknown_below(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _unknown(schema, key, each, f"{path}.{key}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _unknown_below(schema.get("items", {}), each, f"{path}[{index}]")


def _mistakes(schema: Schema, value: Any, path: str) -> Iterator[str]:
    odd = {key for key in schema if key not in _KNOWN and not key.startswith("x-kubernetes-")}
    assert not odd, f"{path}: this does not know {odd}"
    if schema.get("x-kubernetes-validations"):
        yield f"{path}: Forbidden: this stand-in does not work out rules in CEL"
    if value is None and schema.get("nullable"):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str) or isinstance(value, bool):
            yield f'{path}: Invalid value: "{_type_of(value)}": must be of type integer or string'
            return
    elif not _has_type(schema, value):
        yield f'{path}: Invalid value: "{_type_of(value)}": must be of type {schema["type"]}: "{_type_of(value)}"'
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f'{path}: Unsupported value: "{value}": supported values: {", ".join(map(repr, schema["enum"]))}'
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: Invalid value: \"{value}\": should match '{schema['pattern']}'"
    yield from _out_of_bounds(schema, value, path)
    if isinstance(value, dict):
        for key in schema.get("required", []):
            if key not in value:
                yield f"{path}.{key}: Required value"
        more = schema.get("additionalProperties")
        for key, each in value.items():
            below = schema.get("properties", {}).get(key, more if isinstance(more, Mapping) else {})
            yield from _mistakes(below, each, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _mistakes(schema.get("items", {}), each, f"{path}[{index}]")
        keys = schema.get("x-kubernetes-list-map-keys")
        named = [tuple(each.get(key) for key in keys) for each in value] if keys else []
        for repeated in {each for each in named if named.count(each) > 1}:
            yield f"{path}: Duplicate value: {repeated}"


def _out_of_bounds(schema: Schema, value: Any, path: str) -> Iterator[str]:
    size = len(value) if isinstance(value, str | list | dict) else value
    kind = {"string": "Length", "array": "Items", "object": "Properties"}.get(_type_of(value))
    least, most = (f"min{kind}", f"max{kind}") if kind else ("minimum", "maximum")
    if least in schema and size < schema[least]:
        yield f"{path}: Invalid value: {value}: should be greater than or equal to {schema[least]}"
    if most in schema and size > schema[most]:
        yield f"{path}: Invalid value: {value}: should be less than or equal to {schema[most]}"
    bits = _BITS.get(schema.get("format", ""))  # older API servers let more pass, and KubeRay cannot read it then
    if schema.get("type") == "integer" and bits and not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        said = f"Checked value must be of type integer with format {schema['format']} in {path}"
        yield f'<nil>: Invalid value: "": {said}'


def _has_type(schema: Schema, value: Any) -> bool:
    if "type" not in schema:
        return True
    if isinstance(value, bool):
        return bool(schema["type"] == "boolean")
    return isinstance(value, _TYPES[schema["type"]])


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    return next(name for name, kind in _TYPES.items() if isinstance(value, kind))
