"""The job file as JSON Schema (draft 2020-12), for editors."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from launcher.spec import JobSpec
from trainers.config import Every

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generator(GenerateJsonSchema):
    def encode_default(self, dft: Any) -> Any:
        return str(dft) if isinstance(dft, Every) else super().encode_default(dft)


def job_schema() -> dict[str, Any]:
    """Return a schema that takes what a job file may hold: shorthands and empty blocks too, but not rules between keys.

    Those rules ("momentum is an option of sgd") are checked where the file is read.
    """
    schema = JobSpec.model_json_schema(schema_generator=_Generator)
    blocks = schema["$defs"]
    for block in (schema, *blocks.values()):
        for field in block["properties"].values():
            if "$ref" in field:
                reference = field.pop("$ref")
                name = blocks[reference.removeprefix("#/$defs/")]["properties"].get("name")
                field["anyOf"] = [*_alone(name), {"$ref": reference}, {"type": "null"}]
            elif "oneOf" in field:
                field["anyOf"] = [{"oneOf": field.pop("oneOf")}, {"type": "null"}]
    return {"$schema": _DIALECT, **schema, "title": "raylift job file"}


def _alone(name: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A block that has a name may be written as its name alone."""
    return [] if name is None else [{key: name[key] for key in ("const", "enum", "type") if key in name}]
