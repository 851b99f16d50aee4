"""OpenAI's endpoints, healthy."""

from __future__ import annotations

from collections.abc import Callable

from tests.provider.attempt import Attempt
from tests.provider.dialects import Endpoint
from tests.provider.openai.chat import chat_completions, completions
from tests.provider.openai.media import embeddings, images, moderations, speech, transcriptions
from tests.provider.openai.realtime import realtime
from tests.provider.openai.responses import responses, stored_response
from tests.provider.openai.stored import batches, files, models
from tests.provider.steps import Answer
from tests.provider.world import World

_POSTED: dict[str, Callable[[Attempt, World], Answer]] = {
    "chat_completions": chat_completions,
    "completions": completions,
    "responses": responses,
    "embeddings": embeddings,
    "speech": speech,
    "transcriptions": transcriptions,
    "translations": transcriptions,
    "images": images,
    "moderations": moderations,
}
_STORED: dict[str, Callable[[Attempt, Endpoint, World], Answer | None]] = {
    "response": stored_response,
    "files": files,
    "file": files,
    "file_content": files,
    "batches": batches,
    "batch": batches,
    "batch_cancel": batches,
    "models": models,
    "model": models,
}


def openai_answer(attempt: Attempt, endpoint: Endpoint, world: World) -> Answer | None:
    """The healthy answer, or None when there is nothing at this path or no such method."""
    stored = _STORED.get(endpoint.name)
    if stored is not None:
        return stored(attempt, endpoint, world)
    if endpoint.name == "realtime":
        return realtime(attempt, world)
    posted = _POSTED.get(endpoint.name)
    return posted(attempt, world) if posted is not None and attempt.method == "POST" else None
