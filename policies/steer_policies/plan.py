"""A plan: where a call goes, in which order, with which options, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from steer_policies.config import CallTimeouts, CommitPoint, OnBreak

NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place a call may go.

    `model` is the effective model there (the caller's unless the options change it); None when the
    request names none. `options` is an RFC 7396 merge patch, `model` included.
    `context_tokens` is the declared context size, when known.
    """

    upstream: str
    model: str | None
    options: Mapping[str, Any] = field(default_factory=lambda: NO_OPTIONS)
    context_tokens: int | None = None
    estimated_usd: float | None = None
    estimated_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Candidates in order of preference, never empty, and what the rule that matched asks for.

    `reasons` are short sentences for people: why this order, and why a candidate dropped out.
    """

    candidates: tuple[Candidate, ...]
    commit: CommitPoint = CommitPoint.FIRST_TOKEN
    on_break: OnBreak = OnBreak.ERROR
    timeouts: CallTimeouts = field(default_factory=CallTimeouts)
    rule: str | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """No candidate may take the call: the answer Steer gives instead, and why."""

    status: int
    code: str
    message: str
    reasons: tuple[str, ...] = ()
