"""Anthropic's endpoints, healthy."""

from __future__ import annotations

from collections.abc import Callable

from tests.provider.anthropic.messages import count, messages
from tests.provider.anthropic.stored import batches, models
from tests.provider.attempt import Attempt
from tests.provider.dialects import Endpoint
from tests.provider.steps import Answer
from tests.provider.world import World

_POSTED: dict[str, Callable[[Attempt, World], Answer]] = {
    "messages": messages,
    "count_tokens": count,
}
_STORED: dict[str, Callable[[Attempt, Endpoint, World], Answer | None]] = {
    "message_batches": batches,
    "message_batch": batches,
    "message_batch_cancel": batches,
    "message_batch_results": batches,
    "models": models,
    "model": models,
}


def anthropic_answer(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """The healthy answer, or None when there is nothing at this path or no such method."""
    stored = _STORED.get(endpoint.name)
    if stored is not None:
        return stored(attempt, endpoint, world)
    posted = _POSTED.get(endpoint.name)
    return posted(attempt, world) if posted is not None and attempt.method == "POST" else None
