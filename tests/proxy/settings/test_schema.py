"""The JSON Schema that is checked in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steer_proxy.settings.__main__ import main
from steer_proxy.settings.schema import build_schema, schema_text

CHECKED_IN = Path(__file__).parents[3] / "docs" / "steer.schema.json"


def test_it_is_current() -> None:
    """`make schema` was run after the last change."""
    assert CHECKED_IN.read_text("utf-8") == schema_text()


def test_it_is_written_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or to its place in the checkout."""
    main([str(tmp_path / "s.json")])
    assert (tmp_path / "s.json").read_text("utf-8") == schema_text()
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    main([])
    assert (tmp_path / "docs" / "steer.schema.json").read_text("utf-8") == schema_text()


def test_it_says_what_validation_says() -> None:
    """Unknown keys, conditions, references, durations, presets."""
    schema = build_schema()
    definitions = schema["$defs"]
    assert schema["additionalProperties"] is False
    assert definitions["RouteBlock"]["required"] == ["name"]
    assert definitions["RuleBlock"]["properties"]["when"]["$ref"] == "#/$defs/When"
    assert definitions["When"]["oneOf"][0]["required"] == ["attribute", "operator"]
    assert "resilient" in json.dumps(definitions["RouteBlock"]["properties"]["preset"])
    connect = definitions["Timeouts"]["properties"]["connect"]
    assert {each["type"] for each in connect["anyOf"]} == {"number", "string"}
    assert definitions["Timeouts"]["additionalProperties"] is False


def test_every_reference_leads_somewhere() -> None:
    """No editor has to guess."""
    schema = build_schema()
    for reference in _references(schema):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [each for value in node.values() for each in _references(value)]
    if isinstance(node, list):
        return [each for value in node for each in _references(value)]
    return []
