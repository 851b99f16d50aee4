"""The JSON Schema of the configuration, generated from the models that validate it."""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema

from steer_policies.conditions import MAX_CONDITIONS
from steer_policies.operators import Operator
from steer_proxy.settings.models import Settings

_WHEN: Final[dict[str, Any]] = {
    "title": "When",
    "description": "A condition, or conditions combined with all, any or not.",
    "oneOf": [
        {
            "type": "object",
            "properties": {
                "attribute": {"type": "string", "minLength": 1},
                "operator": {"enum": [str(operator) for operator in Operator]},
                "value": {},
            },
            "required": ["attribute", "operator"],
            "additionalProperties": False,
        },
        *(
            {
                "type": "object",
                "properties": {
                    name: {
                        "type": "array",
                        "items": {"$ref": "#/$defs/When"},
                        "minItems": 1,
                        "maxItems": MAX_CONDITIONS,
                    }
                },
                "required": [name],
                "additionalProperties": False,
            }
            for name in ("all", "any")
        ),
        {
            "type": "object",
            "properties": {"not": {"$ref": "#/$defs/When"}},
            "required": ["not"],
            "additionalProperties": False,
        },
    ],
}


class _Generate(GenerateJsonSchema):
    """Leaves out the titles pydantic makes of names: they say nothing the key does not."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def generate(self, schema: Any, mode: Any = "validation") -> dict[str, Any]:
        made = super().generate(schema, mode)
        made["$schema"] = self.schema_dialect
        return made


def build_schema() -> dict[str, Any]:
    """The schema as plain values."""
    schema = Settings.model_json_schema(schema_generator=_Generate)
    schema["title"] = "Steer configuration"
    schema["description"] = "See docs/configuration.md."
    # Keys for YAML anchors.
    schema["patternProperties"] = {"^x-": {}}
    # A route named like one of the catalogue's takes path and candidates from there.
    schema["$defs"]["RouteBlock"]["required"] = ["name"]
    schema["$defs"]["When"] = _WHEN
    replaced: dict[str, Any] = _with_references(schema)
    return replaced


def schema_text() -> str:
    """The schema as it is checked in."""
    return json.dumps(build_schema(), indent=2, sort_keys=True) + "\n"


def _with_references(node: Any) -> Any:
    """Put the recursive definition of conditions where the models left a mark."""
    if isinstance(node, dict):
        if node.get("$comment") == "conditions":
            return {"$ref": "#/$defs/When"}
        return {key: _with_references(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_references(value) for value in node]
    return node
