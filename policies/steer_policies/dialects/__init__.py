"""The wire dialects Steer speaks, by name."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from steer_policies.config import DialectName
from steer_policies.dialects.anthropic import Anthropic
from steer_policies.dialects.base import Dialect
from steer_policies.dialects.gemini import Gemini
from steer_policies.dialects.http import Http
from steer_policies.dialects.openai import OpenAI

_DIALECTS: Final = MappingProxyType[DialectName, Dialect](
    {
        DialectName.OPENAI: OpenAI(),
        DialectName.ANTHROPIC: Anthropic(),
        DialectName.GEMINI: Gemini(),
        DialectName.HTTP: Http(),
    }
)


def dialect(name: DialectName) -> Dialect:
    """The dialect of that name."""
    return _DIALECTS[name]
