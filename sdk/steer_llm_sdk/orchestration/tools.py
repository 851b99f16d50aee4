"""Tools: what a run calls, and where it finds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from steer_llm_sdk.checks import shown
from steer_llm_sdk.errors import InvalidValue, UnknownTool
from steer_llm_sdk.orchestration.metadata import ToolMetadata

if TYPE_CHECKING:
    from steer_llm_sdk.streaming.manager import EventManager

Request = str | dict[str, Any]

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Tool(ABC):
    """Something a run can execute; subclasses give it a `name` and `execute`.

    What else a tool declares helps the planner, and may stay as it is. Properties and plain class
    attributes will both do.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name it is registered and asked for by."""

    @property
    def version(self) -> str:
        """Its version, for the output's metadata."""
        return "1.0.0"

    @property
    def description(self) -> str:
        """What it does, for people."""
        return ""

    @property
    def provider(self) -> str | None:
        """Whom it calls: which circuit breaker configuration it stands under."""
        return None

    @property
    def supported_models(self) -> Sequence[str]:
        """The models it can use."""
        return ()

    @property
    def default_options(self) -> Mapping[str, Any]:
        """Options it runs with unless the plan or the caller says otherwise."""
        return _NOTHING

    @property
    def capabilities(self) -> Sequence[str]:
        """What it can do: a request's `type`, or a capability that quality requirements ask for."""
        return ()

    @property
    def resource_requirements(self) -> Mapping[str, Any]:
        """What one run is expected to take and to give.

        `ms`, `tokens` and `cost_usd` are held against the budget before the run; `quality`, 0 to 1,
        against `min_confidence`; `context_tokens` against `min_context_tokens`. What is not
        declared excludes nothing.
        """
        return _NOTHING

    @property
    def idempotent(self) -> bool:
        """Whether it may be executed again for one idempotency key without doing its work twice.

        So is a tool that only reads, or hands the key on to who keeps to it. In a run with a key,
        only such a tool is tried again after an attempt that may have had an effect.
        """
        return False

    def validate_request(self, request: Request) -> bool:  # noqa: ARG002 - for subclasses
        """Whether this tool can take the request; it is not executed with one it cannot."""
        return True

    @abstractmethod
    async def execute(
        self,
        request: Any,
        options: Any = None,
        event_manager: EventManager | None = None,
    ) -> Any:
        """Do the work, and return any JSON value, or an `OrchestrationOutput`.

        `request` is a copy of its own. `options` holds `request_id` and `trace_id`, and under them
        what the tool's defaults, the plan and the caller set. `event_manager` is given when the run
        streams.

        Of a dictionary, `provider`, `usage`, `cost_usd` and `confidence` are read as what they say.
        Raise `ProviderError` (or let the provider SDK's own error pass) where a provider failed;
        ValueError and TypeError say that the request is at fault, and are never retried.
        """


class ToolRegistry:
    """Tools by name."""

    def __init__(self) -> None:
        self._tools: dict[str, Tool] = {}
        self._metadata: dict[str, ToolMetadata] = {}

    def register_tool(self, tool: Tool) -> None:
        """Add a tool; one of the same name is replaced.

        What it declares is read now, and once.

        Raises:
            InvalidValue: for what is no tool, or declares what cannot be; names the field.
        """
        if isinstance(tool, type):
            raise InvalidValue("tool", f"{tool.__name__} is a class: register an object of it")
        for member in ("name", "execute"):
            if not hasattr(tool, member):
                raise InvalidValue("tool", f"{shown(tool)} has no {member}")
        metadata = ToolMetadata.of(tool)
        # Made anew, so that a planner may hold the one it was given.
        self._metadata = {**self._metadata, metadata.name: metadata}
        self._tools[metadata.name] = tool

    def get_tool(self, name: str) -> Tool:
        """The tool of this name.

        Raises:
            UnknownTool: a LookupError that names the known ones.
        """
        tool = self._found(name)
        if tool is None:
            raise UnknownTool(f"{name}", self._unknown(name))
        return tool

    def _found(self, name: object) -> Tool | None:
        return self._tools.get(name) if isinstance(name, str) else None

    @property
    def metadata(self) -> Mapping[str, ToolMetadata]:
        """What every tool declares, by name; later registrations do not change it."""
        return self._metadata

    def list_tools(self) -> list[str]:
        """The names, in the order of registration."""
        return list(self._tools)

    def unregister(self, name: str) -> None:
        """Forget a tool.

        Raises:
            UnknownTool: when there is none of this name.
        """
        self.get_tool(name)
        del self._tools[name]
        self._metadata = {key: each for key, each in self._metadata.items() if key != name}

    def clear(self) -> None:
        """Forget every tool."""
        self._tools.clear()
        self._metadata = {}

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __len__(self) -> int:
        return len(self._tools)

    def _unknown(self, name: object) -> str:
        close = get_close_matches(name, self._tools, n=1) if isinstance(name, str) else []
        hint = f", did you mean {close[0]}?" if close else ""
        known = ", ".join(self._tools) or "none"
        return f"tool_name: no tool {shown(name)} is registered{hint}; registered: {known}"


_GLOBAL: Final = ToolRegistry()


def get_global_registry() -> ToolRegistry:
    """The registry that orchestrators use unless they are given one."""
    return _GLOBAL
