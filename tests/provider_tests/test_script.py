"""Which request meets which behaviour, and errors as the providers send them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.provider import Attempt, Fault, Provider, faults, json_answer
from tests.provider.hints import Hints
from tests.provider_tests.raw import ASKED, CHAT, RawClient, connected, request, streamed

MESSAGES = "/v1/messages"
GENERATE = "/v1beta/models/gemini-2.5-flash:generateContent"


async def statuses(client: RawClient, *requests: bytes) -> list[int]:
    found = []
    for data in requests:
        client.send(data)
        found.append((await client.plain())[0])
    return found


async def test_a_queue_is_for_generation_only() -> None:
    """Lists and uploads pass it by, unless it is for them; after it comes health."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.status(500), faults.healthy(), faults.status(502))
        provider.then(faults.status(503), to=lambda attempt: attempt.path == "/v1/files")
        models, files = request("/v1/models", method="GET"), request("/v1/files", method="GET")
        assert provider.queued == 4
        asked = [models, request(), request(MESSAGES), files, request(GENERATE), request()]
        assert await statuses(client, *asked) == [200, 500, 200, 503, 502, 200]
        assert provider.queued == 0
        names = [attempt.behaviour for attempt in provider.attempts]
        assert names == ["healthy", "status 500", "healthy", "status 503", "status 502", "healthy"]


async def test_order_of_precedence() -> None:
    """Queue, rules, outages, always, health; `healthy()` forgets all of them."""
    async with Provider() as provider, connected(provider) as client:
        now = asyncio.get_running_loop().time()
        provider.always(faults.status(501))
        assert await statuses(client, request()) == [501]
        provider.down_between(now, now + 1000, faults.status(502))
        assert await statuses(client, request()) == [502]
        provider.when(lambda attempt: attempt.json["model"] == "gpt-4o", faults.status(503))
        assert await statuses(client, request(), request(value={"model": "m"})) == [503, 502]
        provider.then(faults.status(504))
        assert await statuses(client, request(), request()) == [504, 503]
        provider.healthy()
        assert await statuses(client, request()) == [200]


async def test_rules_for_what_happens_before_the_body() -> None:
    """Such a rule sees the head; the others are asked once the body is there."""
    async with Provider() as provider, connected(provider) as client:
        first = faults.before_body(faults.status(413))
        provider.when(lambda attempt: attempt.header("x-big") is not None, first)
        provider.always(faults.status(500))
        sent = [request(headers=("X-Big: 1",)), request()]
        assert await statuses(client, *sent) == [413, 500]


async def test_all_time_is_the_loops() -> None:
    """Hours of silence, slow tokens and outages take no time under the virtual clock."""
    async with Provider(pace=60) as provider, connected(provider) as client:
        loop = asyncio.get_running_loop()
        began = loop.time()
        provider.then(faults.silence(3600), faults.slow_first_token(1800))
        assert await statuses(client, request()) == [200]
        assert loop.time() - provider.attempts[0].at >= 3600
        client.send(streamed())
        await client.head()
        await client.chunks()
        assert loop.time() - began >= 3600 + 1800 + 11 * 60
        provider.flapping(lambda elapsed: elapsed % 20 < 10, faults.status(599))
        found = []
        for _ in range(4):
            found += await statuses(client, request())
            await asyncio.sleep(10)
        provider.healthy().down_between(loop.time() + 5, loop.time() + 10)
        for _ in range(3):
            found += await statuses(client, request())
            await asyncio.sleep(5)
        assert found == [200, 599, 200, 599, 200, 503, 200]


@pytest.mark.parametrize(
    ("fault", "path", "status", "where", "value"),
    [
        (faults.rate_limit(), CHAT, 429, ("error", "code"), "rate_limit_exceeded"),
        (faults.rate_limit(), MESSAGES, 429, ("error", "type"), "rate_limit_error"),
        (faults.rate_limit(), GENERATE, 429, ("error", "status"), "RESOURCE_EXHAUSTED"),
        (faults.insufficient_quota(), CHAT, 429, ("error", "type"), "insufficient_quota"),
        (
            faults.insufficient_quota(),
            MESSAGES,
            429,
            ("error", "details", "error_code"),
            "enforced_spend_limit_reached",
        ),
        (
            faults.insufficient_quota(),
            GENERATE,
            429,
            ("error", "details", 0, "violations", 0, "quotaValue"),
            "0",
        ),
        (faults.overloaded(), CHAT, 503, ("error", "type"), "server_error"),
        (faults.overloaded(), MESSAGES, 529, ("error", "type"), "overloaded_error"),
        (faults.overloaded(), GENERATE, 503, ("error", "status"), "UNAVAILABLE"),
        (faults.overloaded(529), CHAT, 529, ("error", "type"), "server_error"),
        (faults.context_length_exceeded(), CHAT, 400, ("error", "param"), "messages"),
        (faults.context_length_exceeded(), MESSAGES, 400, ("type",), "error"),
        (faults.context_length_exceeded(), GENERATE, 400, ("error", "code"), 400),
        (faults.content_policy(), CHAT, 400, ("error", "code"), "content_policy_violation"),
        (faults.content_policy(), MESSAGES, 400, ("error", "type"), "invalid_request_error"),
        (
            faults.content_policy(),
            GENERATE,
            200,
            ("promptFeedback", "blockReason"),
            "PROHIBITED_CONTENT",
        ),
        (faults.authentication_failed(), CHAT, 401, ("error", "code"), "invalid_api_key"),
        (faults.authentication_failed(), MESSAGES, 401, ("error", "type"), "authentication_error"),
        (
            faults.authentication_failed(),
            GENERATE,
            400,
            ("error", "details", 0, "reason"),
            "API_KEY_INVALID",
        ),
        (faults.permission_denied(), GENERATE, 403, ("error", "status"), "PERMISSION_DENIED"),
        (faults.billing(), CHAT, 429, ("error", "type"), "billing_not_active"),
        (faults.billing(), MESSAGES, 400, ("error", "type"), "invalid_request_error"),
        (faults.status(402), MESSAGES, 402, ("error", "type"), "billing_error"),
        (faults.status(504), GENERATE, 504, ("error", "status"), "DEADLINE_EXCEEDED"),
        (faults.status(401), GENERATE, 401, ("error", "status"), "UNAUTHENTICATED"),
        (faults.status(502), "/tool", 502, ("error",), "server_error"),
        (faults.status(418, {"tea": "pot"}), CHAT, 418, ("tea",), "pot"),
    ],
)
async def test_errors_have_their_dialects_shape(
    fault: Fault, path: str, status: int, where: tuple[Any, ...], value: Any
) -> None:
    """Status and body as the provider sends them, without the rate limits of a healthy answer."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(fault)
        client.send(request(path))
        found, body = await client.plain()
        inner = json.loads(body)
        for key in where:
            inner = inner[key]
        assert (found, inner) == (status, value)


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        ({"retry_after": 1.5}, {"retry-after": "1.5"}),
        ({"retry_after": "soon"}, {"retry-after": "soon"}),
        ({"retry_after_date": 90}, {"retry-after": "Mon, 05 Jan 2026 12:01:30 GMT"}),
        ({"retry_after_ms": 250}, {"retry-after-ms": "250"}),
        ({"x_ms_retry_after_ms": 700}, {"x-ms-retry-after-ms": "700"}),
        ({"amazon_retry_after": 900}, {"x-amz-retry-after": "900"}),
        (
            {"reset_requests": "6m0s", "reset_tokens": "12ms", "remaining": 3},
            {
                "x-ratelimit-remaining-requests": "3",
                "x-ratelimit-reset-requests": "6m0s",
                "x-ratelimit-remaining-tokens": "3",
                "x-ratelimit-reset-tokens": "12ms",
            },
        ),
        (
            {"anthropic_reset": 30, "anthropic_tokens_reset": "never"},
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-01-05T12:00:30Z",
                "anthropic-ratelimit-input-tokens-reset": "never",
            },
        ),
    ],
)
async def test_hints(hints: Hints, expected: dict[str, str]) -> None:
    """Every way of saying when to come back, and only the given ones."""
    async with Provider() as provider, connected(provider) as client:
        provider.always(faults.rate_limit(**hints))
        client.send(request())
        _, headers = await client.head()
        found = dict(headers)
        assert expected.items() <= found.items()
        every = [name for name, _ in headers if "retry" in name or "-reset" in name]
        assert sorted(every) == sorted(name for name in expected if "remaining" not in name)


async def test_gemini_hints_in_the_body() -> None:
    """RetryInfo stands among the details."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.rate_limit(retry_info="37s"))
        client.send(request(GENERATE))
        details = json.loads((await client.plain())[1])["error"]["details"]
        assert details[-1]["@type"].endswith("RetryInfo")
        assert details[-1]["retryDelay"] == "37s"
        provider.then(faults.rate_limit(retry_info="1s"))
        client.send(request(GENERATE.replace("generate", "streamGenerate")))
        (value,) = json.loads((await client.plain())[1])
        assert value["error"]["details"][-1]["retryDelay"] == "1s"


async def test_headers_can_be_set_on_anything() -> None:
    """Any answer can carry any header, an error too."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.server_error() | faults.with_headers(("x-should-retry", "false")))
        client.send(request())
        status, headers = await client.head()
        assert (status, dict(headers)["x-should-retry"]) == (500, "false")


async def test_healthy_answers_depend_on_the_meaning_of_the_request_alone() -> None:
    """Same question, same bytes, here and at another provider; or never, when told so."""
    same = request(value={**ASKED, "stream_options": {"include_usage": True}})
    one, two = Provider(), Provider()
    async with one, two, connected(one) as first, connected(two) as second:
        first.send(request())
        second.send(same)
        assert await first.plain() == await second.plain()
        one.distinct = True
        first.send(request() + request())
        assert await first.plain() != await first.plain()
        two.text = "{name}: {model}"
        two.name = "fallback"
        second.send(request())
        assert b'"content": "fallback: gpt-4o"' in (await second.plain())[1]


async def test_a_function_can_be_a_behaviour() -> None:
    """It is given the attempt and its healthy answer, and named in the log."""

    def teapot(attempt: Attempt, healthy: Any) -> Any:
        return json_answer(418, {"path": attempt.path})

    async with Provider() as provider, connected(provider) as client:
        provider.then(teapot)
        assert await statuses(client, request()) == [418]
        assert provider.attempts[0].behaviour == "teapot"
