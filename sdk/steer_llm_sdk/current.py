"""The terms of the run that is under way, for tools that hand them on.

They are no options: a tool that passes its options to an API must not pass these along by accident.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class RunTerms:
    """What a run was asked to keep to; `deadline` is on the event loop's time."""

    idempotency_key: str | None = None
    budget: Mapping[str, float] | None = None
    quality_requirements: Mapping[str, Any] | None = None
    deadline: float = math.inf


#: Set around each execution of a tool; None outside of runs.
CURRENT: Final[ContextVar[RunTerms | None]] = ContextVar("steer_run", default=None)
