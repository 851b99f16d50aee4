"""The healthy answer to any request, and a memory of the ones asked for again and again."""

from __future__ import annotations

from typing import Any

from tests.provider.answers import empty_answer
from tests.provider.anthropic import anthropic_answer
from tests.provider.attempt import Attempt
from tests.provider.dialects import endpoint_of
from tests.provider.errors import error_answer, error_shape
from tests.provider.framing import immediate
from tests.provider.gemini import gemini_answer
from tests.provider.openai import openai_answer
from tests.provider.plain import plain_answer
from tests.provider.steps import Answer
from tests.provider.world import World

CACHE_SIZE = 256
REMEMBERED = frozenset({"chat_completions", "embeddings", "messages", "model_action"})
"""Endpoints whose answers depend on the bytes of the request alone, and change nothing."""
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


class HealthyAnswers:
    """Makes healthy answers for one provider."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._cache: dict[tuple[Any, ...], tuple[Answer, bytes | None, str]] = {}

    def of(self, attempt: Attempt) -> tuple[Answer, bytes | None]:
        """The answer, and the whole of it as bytes when one write does.

        The same bytes asked again are answered from memory: that is the benchmark's plain path.
        """
        world = self._world
        settings = (world.name, world.text, world.refusal, world.pace, world.tokens, world.date)
        key = (attempt.method, attempt.target, attempt.body, settings)
        repeatable = not world.distinct and world.date is not None
        found = self._cache.get(key) if repeatable else None
        if found is not None:
            answer, wire, attempt.text = found
            return answer, wire
        answer = self._make(attempt)
        wire = immediate(answer)
        if repeatable and attempt.method == "POST" and endpoint_of(attempt).name in REMEMBERED:
            if len(self._cache) >= CACHE_SIZE:
                self._cache.clear()
            self._cache[key] = (answer, wire, attempt.text)
        return answer, wire

    def _make(self, attempt: Attempt) -> Answer:
        world, endpoint = self._world, endpoint_of(attempt)
        date = ("Date", world.http_date())
        if attempt.method == "OPTIONS":
            return empty_answer(204, (date, ("Allow", METHODS)))
        answer: Answer | None
        match endpoint.dialect:
            case "openai":
                answer = openai_answer(attempt, endpoint, world)
            case "anthropic":
                answer = anthropic_answer(attempt, endpoint, world)
            case "gemini":
                answer = gemini_answer(attempt, endpoint, world)
            case "http":
                return plain_answer(attempt, world)
        if answer is None:
            return error_answer(attempt, error_shape(endpoint.dialect, "not_found"), (date,))
        return answer
