"""What a caller demands of the model that answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from steer_policies.config import ModelFacts

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Demands on the answering model; what is not declared of a model is taken to satisfy them.

    `min_confidence` in [0, 1] is compared with a model's declared quality; `capabilities` must all
    be declared; `min_context_tokens` is the least context size. `attributes` is everything the
    caller sent, for rules on `quality.*`.
    """

    min_confidence: float | None = None
    capabilities: tuple[str, ...] = ()
    min_context_tokens: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    def shortfall(self, model: ModelFacts | None) -> str | None:
        """Why a model does not satisfy the demands, in words; None when it may."""
        if model is None:
            return None
        if (
            self.min_confidence is not None
            and model.quality is not None
            and model.quality < self.min_confidence
        ):
            return f"declared quality {model.quality:g} is below {self.min_confidence:g}"
        if model.capabilities:
            missing = [name for name in self.capabilities if name not in model.capabilities]
            if missing:
                return f"{', '.join(missing)} not among the declared capabilities"
        if (
            self.min_context_tokens is not None
            and model.context_tokens is not None
            and model.context_tokens < self.min_context_tokens
        ):
            return f"context of {model.context_tokens} tokens is below {self.min_context_tokens}"
        return None


def parse_quality(value: object) -> Quality:
    """Demands from what a caller sent, such as `{"min_confidence": 0.9}`.

    Keys other than the known ones carry no demand of their own; rules may ask for them.

    Raises:
        ValueError: naming the key and what was expected.
    """
    if not isinstance(value, Mapping):
        raise ValueError('quality is an object such as {"min_confidence": 0.9}')  # noqa: TRY004 - foreign input
    confidence = value.get("min_confidence")
    if confidence is not None and not (_is_number(confidence) and 0 <= confidence <= 1):
        raise ValueError("min_confidence must be a number from 0 to 1")
    capabilities = value.get("capabilities", ())
    if not isinstance(capabilities, (list, tuple)) or not all(
        isinstance(name, str) for name in capabilities
    ):
        raise ValueError("capabilities must be a list of names")
    context = value.get("min_context_tokens")
    if context is not None and not (
        isinstance(context, int) and _is_number(context) and context > 0
    ):
        raise ValueError("min_context_tokens must be a whole number greater than 0")
    return Quality(
        min_confidence=None if confidence is None else float(confidence),
        capabilities=tuple(capabilities),
        min_context_tokens=context,
        attributes=value,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
