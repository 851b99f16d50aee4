"""A caller's credential goes to the home upstream and nowhere else, in whatever form it comes.

Asserted on every byte the other provider saw: target, fields, body, frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.provider import Attempt, Provider, faults
from tests.support.exact import Asked, Got, ask, post
from tests.support.sidecar import Running, configure, running
from tests.support.websocket import handshake, websocket

MARK = "CALLERS-OWN"
Fields = tuple[tuple[str, str], ...]

_PREFIXES = {
    "Authorization": "Bearer ",
    "authorization": "Basic ",
    "Proxy-Authorization": "Basic ",
    "api-key": "",
    "X-Api-Key": "",
    "x-goog-api-key": "",
    "X-Goog-User-Project": "",
    "Ocp-Apim-Subscription-Key": "",
    "OpenAI-Organization": "org-",
    "OpenAI-Project": "proj_",
    "anthropic-workspace-id": "",
    "X-Amz-Security-Token": "",
    "Cookie": "session=",
    "cookie": "other=",
    "X-Auth-Token": "",
    "x-portkey-api-key": "",
    "cf-aig-authorization": "Bearer ",
    "X-Forwarded-Authorization": "Bearer ",
    "Helicone-Auth": "Bearer ",
    "x-functions-key": "",
    "X-Own-Header": "",  # where another upstream of the configuration takes its credential
}
HEADERS: Fields = tuple((name, f"{prefix}{MARK}") for name, prefix in _PREFIXES.items())
QUERY = "&".join(
    f"{name}={MARK}"
    for name in (
        *("key", "KEY", "api_key", "api-key", "apikey", "access_token", "k%65y", "token"),
        *("subscription-key", "x-goog-api-key", "%24httpHeaders"),
    )
)
PROTOCOLS = ", ".join(
    (
        "realtime",
        f"openai-insecure-api-key.{MARK}",
        f"openai-organization.{MARK}",
        f"OpenAI-Project.{MARK}",
        "openai-beta.realtime-v1",
    )
)

PATHS = {
    "openai": "/chat/completions",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/gemini-2.5-flash:generateContent",
    "http": "/tool",
}
BODIES: Mapping[str, Any] = {
    "openai": {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]},
    "anthropic": {
        "model": "claude",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
    },
    "gemini": {"contents": [{"parts": [{"text": "Hi"}]}]},
    "http": {"ask": 1},
}
# Where each dialect's own credential goes when the configuration says no more than `env`.
OWN = {
    "openai": ("authorization", "Bearer other-secret"),
    "anthropic": ("x-api-key", "other-secret"),
    "gemini": ("x-goog-api-key", "other-secret"),
    "http": ("authorization", "Bearer other-secret"),
}
EVERY_DIALECT = pytest.mark.parametrize("dialect", PATHS)


@dataclass(frozen=True)
class Two:
    """A home and another provider, and Steer in front of both."""

    dialect: str
    home: Provider
    other: Provider
    steer: Running

    async def ask(self, *more: tuple[str, str], query: str = QUERY, **members: Any) -> Got:
        """A call with every form of credential at once."""
        asked = post(
            f"/route{PATHS[self.dialect]}?{query}&kept=1",
            {**BODIES[self.dialect], **members},
            *HEADERS,
            *more,
        )
        return await ask(self.steer.sidecar.port, asked)


@contextlib.asynccontextmanager
async def two(
    tmp_path: Path,
    dialect: str,
    *,
    credential: Any = None,
    home: Mapping[str, Any] | None = None,
    route: Mapping[str, Any] | None = None,
    **top: Any,
) -> AsyncIterator[Two]:
    """Home passes the caller's credential on unless refined; the other one has its own."""
    base = "/v1" if dialect == "openai" else ""
    async with Provider(name="home") as first, Provider(name="other") as second:
        own = {"env": "OTHER_KEY"} if credential is None else credential
        settings: dict[str, Any] = {
            "upstreams": {
                "home": {"dialect": dialect, "base_url": first.base_url + base, **(home or {})},
                "other": {
                    "dialect": dialect,
                    "base_url": second.base_url + base,
                    "credential": own,
                },
                "third": {
                    "dialect": dialect,
                    "base_url": "http://127.0.0.1:9",
                    "credential": {"env": "OTHER_KEY", "header": "x-own-header", "prefix": ""},
                },
            },
            "routes": [
                {
                    "name": "route",
                    "path": "/route",
                    "candidates": ["home", "other"],
                    **(route or {}),
                }
            ],
            **top,
        }
        secrets = {"OTHER_KEY": "other-secret", "HOME_KEY": "home-secret", "TOKEN": f"{MARK}-token"}
        async with running(configure(settings, tmp_path, secrets)) as steer:
            yield Two(dialect, first, second, steer)


def everything(attempt: Attempt) -> str:
    """Every byte of a request as the provider saw it."""
    fields = "\n".join(f"{name}: {value}" for name, value in attempt.headers)
    body = attempt.body.decode("latin-1")
    return f"{attempt.target}\n{fields}\n{body}\n{attempt.trailers}\n{attempt.messages}"


def clean(attempts: Sequence[Attempt], own: tuple[str, str] | None) -> None:
    """Nothing of the caller's is there; the upstream's own credential stands there once."""
    assert attempts
    for attempt in attempts:
        seen = everything(attempt)
        assert MARK.lower() not in seen.lower(), seen
        assert "kept=1" in attempt.target or attempt.is_websocket
        if own is not None:
            assert attempt.header_values(own[0]) == [own[1]]
            assert seen.count("other-secret") == 1


REASONS: dict[str, dict[str, Any]] = {
    "a failing home": {},
    "an unreachable home": {},
    "a throttled home": {},
    "a silent home": {"home": {"timeouts": {"first_byte": 3, "answer": 3}}},
    "a rule": {"route": {"rules": [{"name": "away", "use": "other", "fallbacks": ["home"]}]}},
    "a rule with options": {
        "route": {
            "rules": [{"name": "away", "use": {"upstream": "other", "options": {"model": "x"}}}]
        }
    },
    "the caller's choice": {},
}


FAULTS = {
    "a failing home": faults.status(503),
    "a throttled home": faults.rate_limit(retry_after=30),
    "a silent home": faults.silence(),
}


@EVERY_DIALECT
@pytest.mark.parametrize("reason", REASONS)
async def test_no_way_leads_a_credential_elsewhere(
    tmp_path: Path, dialect: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Fallback, rule or override: the other provider sees its own credential and no other."""
    chosen: Fields = ()
    async with two(tmp_path, dialect, **REASONS[reason]) as both:
        if reason in FAULTS:
            both.home.always(FAULTS[reason])
        elif reason == "an unreachable home":
            await both.home.stop_listening()
        elif reason == "the caller's choice":
            chosen = (("X-Steer-Upstream", "other"),)
        got = await both.ask(*chosen)
        if (dialect, reason) == ("http", "a silent home"):
            assert both.other.attempts == []  # an unknown API: the call may have been executed
            return
        assert (got.status, got.value("X-Steer-Upstream")) == (200, "other")
        clean(both.other.attempts, OWN[dialect])
        assert MARK not in caplog.text
        assert "other-secret" not in caplog.text
        assert "other-secret" not in str(got.fields)


@EVERY_DIALECT
async def test_home_gets_what_the_caller_sent(tmp_path: Path, dialect: str) -> None:
    """Passed through to the byte: every field, every parameter, cookies included."""
    async with two(tmp_path, dialect) as both:
        assert (await both.ask()).status == 200
        (attempt,) = both.home.attempts
        assert attempt.query == f"{QUERY}&kept=1"
        for name, value in HEADERS:
            if name.lower() != "proxy-authorization":  # meant for a proxy, and Steer is one
                assert (name, value) in attempt.headers
        assert both.other.attempts == []


@pytest.mark.parametrize(
    ("credential", "header", "value"),
    [
        ({"env": "OTHER_KEY", "header": "api-key"}, "api-key", "other-secret"),
        ({"env": "OTHER_KEY", "header": "X-My-Key"}, "x-my-key", "other-secret"),
        (
            {"env": "OTHER_KEY", "header": "authorization", "prefix": "Token "},
            "authorization",
            "Token other-secret",
        ),
        ({"env": "OTHER_KEY", "prefix": ""}, "authorization", "other-secret"),
    ],
)
async def test_where_the_own_credential_goes(
    tmp_path: Path, credential: Any, header: str, value: str
) -> None:
    """Header and prefix are the configuration's; the caller's field of that name is replaced."""
    async with two(tmp_path, "openai", credential=credential) as both:
        await both.ask(("X-Steer-Upstream", "other"), (header.title(), MARK))
        (attempt,) = both.other.attempts
        assert attempt.header_values(header) == [value]
        assert MARK not in everything(attempt)


@EVERY_DIALECT
async def test_an_upstream_without_credential_gets_none(tmp_path: Path, dialect: str) -> None:
    """`credential: none` takes the caller's away and puts nothing in its place."""
    async with two(tmp_path, dialect, credential="none") as both:
        await both.ask(("X-Steer-Upstream", "other"))
        clean(both.other.attempts, None)
        assert "secret" not in everything(both.other.attempts[0])


@EVERY_DIALECT
async def test_a_home_with_its_own_credential(tmp_path: Path, dialect: str) -> None:
    """Then the caller's is not passed even there."""
    async with two(tmp_path, dialect, home={"credential": {"env": "HOME_KEY"}}) as both:
        await both.ask()
        (attempt,) = both.home.attempts
        assert MARK not in everything(attempt)
        name, value = OWN[dialect]
        assert attempt.header_values(name) == [value.replace("other", "home")]


async def test_pinned_calls_by_hand(tmp_path: Path) -> None:
    """A stored object cannot be asked for at another upstream in Steer's own name."""
    async with two(tmp_path, "openai") as both:
        asked = Asked(
            "GET", f"/route/files?{QUERY}&kept=1", (*HEADERS, ("X-Steer-Upstream", "other"))
        )
        got = await ask(both.steer.sidecar.port, asked)
        assert got.status == 400
        assert b"steer_pinned" in got.body
        assert not both.other.attempts
        assert not both.home.attempts


async def test_a_resumed_stream(tmp_path: Path) -> None:
    """The second half of a stream comes from elsewhere, and is asked for in Steer's own name."""
    async with two(tmp_path, "openai", route={"on_break": "resume"}) as both:
        both.home.always(faults.cut_after(events=5, how="reset"))
        both.home.text = both.other.text
        got = await both.ask(stream=True)
        assert got.body.endswith(b"data: [DONE]\n\n")
        clean(both.other.attempts, OWN["openai"])


@pytest.mark.parametrize("reason", ["a failing home", "a rule", "the caller's choice"])
async def test_realtime(tmp_path: Path, reason: str) -> None:
    """Subprotocols carry credentials, too; the others stay, and one of them is chosen."""
    more: Fields = ()
    async with two(tmp_path, "openai", **REASONS[reason]) as both:
        if reason == "a failing home":
            both.home.always(faults.status(503))
        if reason == "the caller's choice":
            more = (("X-Steer-Upstream", "other"),)
        path = f"/route/realtime?model=gpt-realtime&{QUERY}"
        protocols = ("Sec-WebSocket-Protocol", PROTOCOLS)
        async with websocket(both.steer.sidecar.port, path, *HEADERS, protocols, *more) as caller:
            assert caller.got.value("Sec-WebSocket-Protocol") == "realtime"
            await caller.text()
        clean(both.other.attempts, OWN["openai"])
        asked = both.other.attempts[0]
        assert asked.header("sec-websocket-protocol") == "realtime, openai-beta.realtime-v1"
        assert asked.query == "model=gpt-realtime"


async def test_realtime_at_home(tmp_path: Path) -> None:
    """There the subprotocols arrive as they were offered."""
    async with two(tmp_path, "openai") as both:
        asked = handshake(
            "/route/realtime?model=gpt-realtime", ("Sec-WebSocket-Protocol", PROTOCOLS)
        )
        assert (await ask(both.steer.sidecar.port, asked)).status == 101
        assert both.home.attempts[0].header("sec-websocket-protocol") == PROTOCOLS


@pytest.mark.parametrize(
    "presented",
    [
        ("X-Steer-Token", f"{MARK}-token"),
        ("Authorization", f"Bearer {MARK}-token"),
        ("x-api-key", f"{MARK}-token"),
        ("api-key", f"{MARK}-token"),
        ("x-goog-api-key", f"{MARK}-token"),
    ],
    ids=lambda pair: pair[0],
)
async def test_the_ports_own_token_goes_nowhere(tmp_path: Path, presented: tuple[str, str]) -> None:
    """Not even home: a token presented as API key leaves the request without any."""
    async with two(tmp_path, "openai", listen={"port": 0, "token": {"env": "TOKEN"}}) as both:
        port = both.steer.sidecar.port
        asked = post("/route/chat/completions", BODIES["openai"], presented)
        assert (await ask(port, asked)).status == 200
        assert MARK not in everything(both.home.attempts[0])
        by_hand = (("Authorization", "Bearer sk-own"), ("X-Steer-Token", f"{MARK}-token"))
        await ask(port, post("/route/chat/completions", BODIES["openai"], *by_hand))
        assert both.home.attempts[1].header("authorization") == "Bearer sk-own"
        assert MARK not in everything(both.home.attempts[1])


async def test_cookies_by_which_steer_is_known_stay_here(tmp_path: Path) -> None:
    """An answer to Steer's own credential, or to none, sets no cookies in the caller's client."""
    cases: tuple[tuple[Any, Any, Fields, int], ...] = (
        (None, None, (), 2),
        (None, None, (("X-Steer-Upstream", "other"),), 0),
        ("none", None, (("X-Steer-Upstream", "other"),), 0),
        (None, {"credential": {"env": "HOME_KEY"}}, (), 0),
    )
    for credential, home, more, cookies in cases:
        async with two(tmp_path, "openai", credential=credential, home=home) as both:
            got = await both.ask(*more)
            assert got.status == 200
            assert len(got.values("Set-Cookie")) == cookies
            assert got.values("x-request-id")


async def test_a_changed_secret_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotated file is read anew, without a reload."""
    monkeypatch.setattr("steer_proxy.engine.secret.CHECK_EVERY", 0.0)
    secret = tmp_path / "other.key"
    secret.write_text("first-secret\n")
    async with two(tmp_path, "openai", credential={"file": str(secret)}) as both:
        for value in ("first-secret\n", "second-secret"):
            secret.write_text(value)
            await both.ask(("X-Steer-Upstream", "other"))
        seen = [attempt.header("authorization") for attempt in both.other.attempts]
        assert seen == ["Bearer first-secret", "Bearer second-secret"]


async def test_steers_own_answers_name_no_secret(tmp_path: Path) -> None:
    """Refusals quote what they refuse, but never a credential."""
    async with two(tmp_path, "openai") as both:
        port = both.steer.sidecar.port
        await both.home.stop_listening()
        await both.other.stop_listening()
        for path in ("/nowhere", "/route/chat/completions", "/route/%2e%2e/x"):
            got = await ask(port, post(f"{path}?{QUERY}", BODIES["openai"], *HEADERS))
            assert got.status >= 400
            for secret in (MARK, "other-secret"):
                assert secret not in str(got)
