"""Tools, what they declare, and the registry."""

from __future__ import annotations

from typing import Any

import pytest

from steer_llm_sdk.orchestration import (
    InvalidValue,
    ReliableOrchestrator,
    Tool,
    ToolRegistry,
    UnknownTool,
    get_global_registry,
)
from tests.sdk.stubs import Scripted, registry_of


class Least(Tool):
    """As little as a tool can be."""

    name = "least"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return request


def test_what_a_tool_is_without_saying() -> None:
    """Everything but its name and what it does has a default."""
    tool = Least()
    assert (tool.version, tool.description, tool.provider) == ("1.0.0", "", None)
    assert (tool.supported_models, tool.capabilities) == ((), ())
    assert (dict(tool.default_options), dict(tool.resource_requirements)) == ({}, {})
    assert tool.validate_request("anything")


def test_a_tool_needs_a_name_and_something_to_do() -> None:
    """Both are abstract."""
    with pytest.raises(TypeError):
        Tool()  # type: ignore[abstract]


def test_a_registry() -> None:
    """Tools by name, in order; one of the same name takes the other's place."""
    registry = ToolRegistry()
    one, two = Scripted("one"), Scripted("two")
    for tool in (one, two):
        registry.register_tool(tool)
    assert registry.list_tools() == ["one", "two"]
    assert registry.get_tool("one") is one
    assert "one" in registry
    assert len(registry) == 2
    before = registry.metadata
    newer = Scripted("one", provider="acme")
    registry.register_tool(newer)
    assert registry.get_tool("one") is newer
    assert (before["one"].provider, registry.metadata["one"].provider) == (None, "acme")
    registry.unregister("one")
    assert registry.list_tools() == ["two"]
    registry.clear()
    assert registry.list_tools() == []
    assert registry.metadata == {}


def test_an_unknown_tool() -> None:
    """It is told with what is known, and what was perhaps meant; it is a LookupError."""
    registry = registry_of(Scripted("analysis"))
    with pytest.raises(UnknownTool, match=r"tool_name: no tool 'analisys'.*did you mean analysis"):
        registry.get_tool("analisys")
    with pytest.raises(LookupError):
        registry.unregister("nothing")
    with pytest.raises(UnknownTool, match="registered: none"):
        ToolRegistry().get_tool("x")


@pytest.mark.parametrize(
    ("tool", "named"),
    [
        (object(), "tool"),
        (Scripted(""), "name"),
        (Scripted("x", needs={"cost_usd": "much"}), r"resource_requirements\.cost_usd"),
        (Scripted("x", provider=3), "provider"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_registered(tool: Any, named: str) -> None:
    """It is refused at once, by the name of the field."""
    with pytest.raises(InvalidValue, match=named):
        ToolRegistry().register_tool(tool)


async def test_the_global_registry_is_the_default() -> None:
    """Orchestrators find there what was registered after they were made."""
    orchestrator = ReliableOrchestrator()
    assert orchestrator.registry is get_global_registry()
    get_global_registry().register_tool(Least())
    try:
        assert (await orchestrator.run("hello")).content == "hello"
    finally:
        get_global_registry().unregister("least")


async def test_a_tool_by_any_other_class() -> None:
    """What has a name and can be executed will do; it need not even be a coroutine."""

    class Duck:
        name = "duck"

        def execute(self, request: Any, options: Any, event_manager: Any) -> Any:
            return {"quack": request}

    registry = ToolRegistry()
    registry.register_tool(Duck())  # type: ignore[arg-type]
    result = await ReliableOrchestrator(registry=registry).run("hi", tool_name="duck")
    assert result.content == {"quack": "hi"}
    assert result.metadata["tool_version"] == "1.0.0"
