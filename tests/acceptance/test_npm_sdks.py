"""The official JavaScript SDKs behave through Steer as they do without it.

One Node process for each SDK runs every scenario of `npm/*.mjs` against both base URLs and prints
what it got; here the two are compared, and held against what the providers saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.provider import Attempt, faults
from tests.provider.choosing import Predicate
from tests.support.sdk import Doubles, compared, doubles, node

STATUSES = [400, 401, 403, 404, 409, 422, 429, 500, 503]


def asks_for(model: str) -> Predicate:
    """Requests that name this model."""
    return lambda attempt: attempt.object.get("model") == model


def scripted(both: Doubles) -> None:
    """What happens depends on the model that is asked for."""
    for provider in (both.direct, both.behind):
        for status in STATUSES:
            provider.when(asks_for(f"status-{status}"), faults.status(status))
            provider.when(asks_for(f"retries-{status}"), faults.status(status))
        provider.when(asks_for("silent"), faults.silence())


def about(attempts: list[Attempt], model: str) -> list[Attempt]:
    return [attempt for attempt in attempts if attempt.object.get("model") == model]


# What each of Steer's own answers must become: the class, the status, Steer's code, its words.
OWN = {
    "badHeader": ("BadRequestError", 400, "steer_bad_header", "X-Steer-Budget"),
    "noRoute": ("NotFoundError", 404, "steer_no_route", "/openai/v1"),
    "unreachable": ("InternalServerError", 502, "steer_upstream_unreachable", "attempt 3 at"),
    "timeUp": ("InternalServerError", 504, "steer_deadline", "time is up"),
}
# Anthropic's client has finer classes for some statuses; they are kinds of `InternalServerError`.
FINER = {"anthropic": {503: "ServiceUnavailableError", 504: "GatewayTimeoutError"}, "openai": {}}


@pytest.mark.real_time
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_npm(tmp_path: Path, dialect: str) -> None:
    """Every call comes to the same as directly, errors included; nothing is retried twice over."""
    async with doubles(tmp_path, quick_retries=True) as both:
        scripted(both)
        direct, steered = both.urls(dialect)
        found: Any = await node(
            f"{dialect}.mjs",
            direct=direct,
            steered=steered,
            nowhere=f"{both.steer.url}/nowhere",
            unreachable=f"{both.steer.url}/unreachable/{dialect}",
            statuses=STATUSES,
        )
        compared(found["direct"], found["direct"], found["steered"])
        raised = {name for name, value in found["steered"].items() if "raised" in (value or ())}
        assert raised == {f"status-{code}{end}" for code in STATUSES for end in ("", " streamed")}
        for name, (kind, status, code, words) in OWN.items():
            error = found["own"][name]
            assert error["raised"] == FINER[dialect].get(status, kind)
            assert error["status"] == status
            assert code in str(error["body"])
            assert words in error["says"]
        for status, kind in ((429, "RateLimitError"), (503, "InternalServerError")):
            error = found["own"][f"retries{status}"]
            assert error["raised"] == FINER[dialect].get(status, kind)
            attempts = about(both.behind.attempts, f"retries-{status}")
            assert [attempt.header("x-stainless-retry-count") for attempt in attempts] == ["0"] * 3
        assert len(about(both.behind.attempts, "silent")) == 1


# What calls with a key must become that cannot be served: the class, Steer's words, and what all
# tries of the SDK were told, by `Idempotency-Status` or else by the status.
KEYED = {
    "another request": ("UnprocessableEntityError", "was used for another request", ["422"]),
    "lost": ("InternalServerError", "may have been executed", ["uncertain"]),
    "uncertain": ("ConflictError", "may have been executed", ["uncertain"]),
}


@pytest.mark.real_time
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_npm_with_a_key(tmp_path: Path, dialect: str) -> None:
    """One paid call for duplicates, together and later, and for the SDK's own retries; what cannot
    be served is not tried again, and raised with Steer's words."""
    async with doubles(tmp_path, quick_retries=True) as both:
        both.behind.when(asks_for("slow"), faults.silence(0.3))
        both.behind.when(asks_for("late"), faults.silence(1.8))
        both.behind.when(asks_for("lost"), faults.reset_before_answer())
        half = faults.until_close() | faults.cut_after(bytes=60, how="close")
        both.behind.when(asks_for("half"), half)
        both.behind.when(asks_for("broken"), faults.cut_after(events=5))
        _, url = both.urls(dialect)
        found: Any = await node("keyed.mjs", sdk=dialect, url=url)
        text = both.behind.text
        finer = "GatewayTimeoutError" if dialect == "anthropic" else "InternalServerError"
        for streamed in ("", " streamed"):
            assert found[f"together{streamed}"]["text"] == "|".join([text] * 5)
            assert found[f"again{streamed}"] == {"text": text, "told": ["replayed"]}
            for name, (kind, words, told) in KEYED.items():
                error = found[f"{name}{streamed}"]
                assert error["raised"] == (finer if name == "lost" else kind)
                assert words in error["says"]
                assert error["told"] == told
            assert found[f"patient{streamed}"]["text"] == text
        assert found["broken"]["raised"] == finer
        assert "truncated" in found["broken"]["says"]
        assert found["broken streamed"]["raised"] == "APIError"
        assert "it is not complete" in found["broken streamed"]["says"]
        made = {"slow": 2, "late": 2, "lost": 2, "half": 1, "broken": 1, "m": 0}
        assert {model: len(about(both.behind.attempts, model)) for model in made} == made
