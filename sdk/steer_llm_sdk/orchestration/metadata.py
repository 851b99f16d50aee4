"""What a tool declares of itself, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from steer_llm_sdk import checks
from steer_llm_sdk.errors import InvalidValue
from steer_policies.config import ModelFacts
from steer_policies.shortlist import Entrant

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ToolMetadata:
    """What a tool declares of itself; see `Tool` for what each of it means.

    Raises:
        InvalidValue: naming the field.
    """

    name: str
    description: str = ""
    version: str = "1.0.0"
    provider: str | None = None
    capabilities: Sequence[str] = ()
    supported_models: Sequence[str] = ()
    default_options: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    resource_requirements: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    idempotent: bool = False
    entrant: Entrant = field(init=False, repr=False, compare=False)
    """The same for the policy that compares tools."""

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        if self.provider is not None:
            checks.text("provider", self.provider)
        checks.flag("idempotent", self.idempotent)
        needs = self.resource_requirements
        checks.mapping("resource_requirements", needs)
        checks.mapping("default_options", self.default_options)
        for name in ("capabilities", "supported_models"):
            checks.names(name, getattr(self, name))
        for key in ("ms", "tokens", "cost_usd"):
            if (value := needs.get(key)) is not None:
                checks.number(f"resource_requirements.{key}", value)
        try:
            facts = ModelFacts(
                quality=needs.get("quality"),
                context_tokens=needs.get("context_tokens"),
                capabilities=tuple(self.capabilities),
            )
        except (TypeError, ValueError) as error:
            raise InvalidValue("resource_requirements", str(error)) from None
        entrant = Entrant(
            name=self.name,
            provider=self.provider,
            facts=facts,
            ms=needs.get("ms"),
            tokens=needs.get("tokens"),
            cost_usd=needs.get("cost_usd"),
        )
        object.__setattr__(self, "entrant", entrant)

    @classmethod
    def of(cls, tool: Any) -> ToolMetadata:
        """What a tool declares; what one that is no `Tool` leaves out is taken as undeclared."""
        return cls(
            name=tool.name,
            description=getattr(tool, "description", "") or "",
            version=str(getattr(tool, "version", "1.0.0")),
            provider=getattr(tool, "provider", None) or None,
            capabilities=getattr(tool, "capabilities", None) or (),
            supported_models=getattr(tool, "supported_models", None) or (),
            default_options=getattr(tool, "default_options", None) or _NOTHING,
            resource_requirements=getattr(tool, "resource_requirements", None) or _NOTHING,
            idempotent=getattr(tool, "idempotent", False),
        )
