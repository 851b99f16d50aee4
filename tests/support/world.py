"""A primary and a fallback provider, Steer in front of them, and a caller: all in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from steer_proxy.ledger.protocol import Ledger
from tests.provider import Provider
from tests.support.sidecar import Running, configure, running

#: For each dialect: the path its base URL ends with.
_BASE = {"openai": "/v1", "anthropic": "", "gemini": "", "http": ""}
_KEY = {
    "openai": ("Authorization", "Bearer caller-key"),
    "anthropic": ("x-api-key", "caller-key"),
    "gemini": ("x-goog-api-key", "caller-key"),
    "http": ("Authorization", "Bearer caller-key"),
}
MESSAGES = [{"role": "user", "content": "Say something plain."}]


@dataclass(frozen=True)
class Reply:
    """What the caller got: `error` is set when the connection ended in the middle."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    error: Exception | None = None

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def cut(self) -> bool:
        """Whether the answer ended without its proper end."""
        return self.error is not None

    @property
    def text(self) -> str:
        """What the model said, from a plain or streamed answer of any dialect."""
        if self.headers.get("Content-Type", "").startswith("text/event-stream"):
            return "".join(_said(event) for event in self.events)
        value = self.json
        return "".join(_said(item) for item in (value if isinstance(value, list) else [value]))

    @property
    def events(self) -> list[Any]:
        """The JSON values of an event stream's data lines; what is not JSON is left out."""
        found = []
        for line in self.body.splitlines():
            if line.startswith(b"data:"):
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line[5:]))
        return found


def _said(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    for choice in value.get("choices", ()):
        part = choice.get("message") or choice.get("delta") or {}
        return str(part.get("content") or "")
    for candidate in value.get("candidates", ()):
        return "".join(part.get("text", "") for part in candidate["content"]["parts"])
    if value.get("type") == "content_block_delta":
        return str(value["delta"].get("text", ""))
    if value.get("type") == "message":
        return "".join(block.get("text", "") for block in value["content"])
    return ""


class World:
    """The parties of a test."""

    def __init__(
        self,
        dialect: str,
        primary: Provider,
        fallback: Provider,
        steer: Running,
        session: aiohttp.ClientSession,
    ) -> None:
        self.dialect = dialect
        self.primary = primary
        self.fallback = fallback
        self.steer = steer
        self.session = session

    def now(self) -> float:
        """The loop's (virtual) time in seconds."""
        return asyncio.get_running_loop().time()

    def request(self, *, stream: bool = False, **members: Any) -> tuple[str, dict[str, Any]]:
        """Path and body of a generation request."""
        if self.dialect == "anthropic":
            return "/v1/messages", {
                "model": "claude-sonnet-4-5",
                "max_tokens": 64,
                "messages": MESSAGES,
                **({"stream": True} if stream else {}),
                **members,
            }
        if self.dialect == "gemini":
            verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
            contents = [{"role": "user", "parts": [{"text": "Say something plain."}]}]
            return f"/v1beta/models/gemini-2.5-flash:{verb}", {"contents": contents, **members}
        if self.dialect == "http":
            return "/tool", {"ask": "something", **members}
        return "/chat/completions", {
            "model": "gpt-4o",
            "messages": MESSAGES,
            **({"stream": True} if stream else {}),
            **members,
        }

    async def ask(
        self, *, stream: bool = False, headers: Mapping[str, str] | None = None, **members: Any
    ) -> Reply:
        """One call through Steer, read to its end."""
        path, body = self.request(stream=stream, **members)
        return await self.send("POST", path, json=body, headers=headers)

    async def send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Reply:
        """Any request to the route, with the caller's own key."""
        key, value = _KEY[self.dialect]
        began = self.now()
        whole = {key: value, **(headers or {})}
        url = f"{self.steer.url}/route{path}"
        async with self.session.request(method, url, headers=whole, **options) as response:
            pieces: list[bytes] = []
            error: Exception | None = None
            try:
                while piece := await response.content.readany():
                    pieces.append(piece)
            except aiohttp.ClientError as problem:
                error = problem
            return Reply(
                response.status, response.headers, b"".join(pieces), self.now() - began, error
            )


@contextlib.asynccontextmanager
async def world(
    tmp_path: Path,
    dialect: str = "openai",
    *,
    fallback: bool = True,
    route: Mapping[str, Any] | None = None,
    upstream: Mapping[str, Any] | None = None,
    fallback_options: Mapping[str, Any] | None = None,
    database: Mapping[str, Any] | None = None,
    ledger: Ledger | None = None,
    limits: Mapping[str, Any] | None = None,
) -> AsyncIterator[World]:
    """Two providers and a route `/route` over them; `route` and `upstream` refine both. The ledger
    is in memory, unless `database` says where, or `ledger` is it."""
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Provider(name="primary"))
        second = await stack.enter_async_context(Provider(name="fallback"))
        base = _BASE[dialect]
        second_candidate: dict[str, Any] = {"upstream": "fallback"}
        if fallback_options:
            second_candidate["options"] = dict(fallback_options)
        settings: dict[str, Any] = {
            "upstreams": {
                "primary": {
                    "dialect": dialect,
                    "base_url": first.base_url + base,
                    **(upstream or {}),
                },
                "fallback": {
                    "dialect": dialect,
                    "base_url": second.base_url + base,
                    "credential": {"env": "FALLBACK_KEY"},
                    **(upstream or {}),
                },
            },
            "routes": [
                {
                    "name": "route",
                    "path": "/route",
                    "candidates": ["primary", *([second_candidate] if fallback else [])],
                    **(route or {}),
                }
            ],
        }
        if database is not None:
            settings["database"] = dict(database)
        if limits is not None:
            settings["limits"] = dict(limits)
        config = configure(settings, tmp_path, {"FALLBACK_KEY": "fallback-key"})
        steer = await stack.enter_async_context(running(config, ledger=ledger))
        # Nothing is kept: what the caller's side pools is not in question.
        connector = aiohttp.TCPConnector(force_close=True)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield World(dialect, first, second, steer, session)
