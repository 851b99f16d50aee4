"""The official SDKs as their users call them, with their own defaults, retries included."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Protocol

#: What the demo asks; the answer is `answers.ANSWER`.
QUESTION: Final = "What does a steady hand do?"

#: The SDKs the demo drives.
NEEDED: Final = ("openai", "anthropic")


class NotInstalled(Exception):
    """An SDK is missing; the message says how to get it."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            f"the demo drives the real SDKs, and {' and '.join(missing)} cannot be imported; "
            "install them with: pip install 'steer-llm[demo]' (in a checkout, `make demo` does)"
        )


def require() -> None:
    """Make sure that the SDKs are there.

    Raises:
        NotInstalled: naming those that are not.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NotInstalled(missing)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a caller got: a text, or half of one and an exception. `seconds` is how long it took."""

    text: str
    seconds: float
    headers: Mapping[str, str]
    error: str | None = None
    message: str = ""

    @property
    def upstream(self) -> str:
        """The upstream that answered, as Steer's header says."""
        return self.headers.get("x-steer-upstream", "")

    @property
    def attempts(self) -> int:
        """How many attempts Steer made."""
        return int(self.headers.get("x-steer-attempts", "0"))

    @property
    def model(self) -> str:
        """The model, where Steer changed it."""
        return self.headers.get("x-steer-model", "")


class Caller(Protocol):
    """One SDK client. Use `ask` as often as you like, then `close`."""

    async def ask(self, *, stream: bool, heard: Callable[[str], None]) -> Seen:
        """Ask the question; `heard` is given each piece of a stream."""

    async def close(self) -> None:
        """Close its connections."""


def caller(dialect: str, base_url: str, key: str) -> Caller:
    """A client that is given its base URL and key, and nothing else."""
    return _Anthropic(base_url, key) if dialect == "anthropic" else _OpenAI(base_url, key)


class _OpenAI:
    def __init__(self, base_url: str, key: str) -> None:
        import openai

        self._errors = openai.OpenAIError
        # Loopback must not go by a proxy of this environment.
        http_client = openai.DefaultAsyncHttpxClient(trust_env=False)
        self._client = openai.AsyncOpenAI(
            base_url=f"{base_url}/v1", api_key=key, organization="org-of-the-caller",
            http_client=http_client,
        )  # fmt: skip

    async def ask(self, *, stream: bool, heard: Callable[[str], None]) -> Seen:
        messages: Any = [{"role": "user", "content": QUESTION}]
        took = _stopwatch()
        text, headers = "", {}
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model="small", messages=messages, stream=stream
            )
            headers = dict(raw.headers)
            answer = await _parsed(raw)
            if not stream:
                return Seen(answer.choices[0].message.content or "", took(), headers)
            async for chunk in answer:
                piece = chunk.choices[0].delta.content or "" if chunk.choices else ""
                text += piece
                heard(piece)
        except self._errors as error:
            return _failed(error, text, took(), headers)
        return Seen(text, took(), headers)

    async def close(self) -> None:
        await self._client.close()


class _Anthropic:
    def __init__(self, base_url: str, key: str) -> None:
        import anthropic

        self._errors = anthropic.AnthropicError
        http_client = anthropic.DefaultAsyncHttpxClient(trust_env=False)
        self._client = anthropic.AsyncAnthropic(
            base_url=base_url, api_key=key, http_client=http_client
        )

    async def ask(self, *, stream: bool, heard: Callable[[str], None]) -> Seen:
        messages: Any = [{"role": "user", "content": QUESTION}]
        took = _stopwatch()
        text, headers = "", {}
        try:
            raw = await self._client.messages.with_raw_response.create(
                model="small", max_tokens=64, messages=messages, stream=stream
            )
            headers = dict(raw.headers)
            answer = await _parsed(raw)
            if not stream:
                return Seen(answer.content[0].text, took(), headers)
            async for event in answer:
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    text += event.delta.text
                    heard(event.delta.text)
        except self._errors as error:
            return _failed(error, text, took(), headers)
        return Seen(text, took(), headers)

    async def close(self) -> None:
        await self._client.close()


async def _parsed(raw: Any) -> Any:
    """What a raw response holds: `parse` is a coroutine in some versions of the SDKs."""
    answer = raw.parse()
    return await answer if inspect.isawaitable(answer) else answer


def _stopwatch() -> Callable[[], float]:
    """Seconds since now."""
    now = asyncio.get_running_loop().time
    began = now()
    return lambda: now() - began


def _failed(error: Exception, text: str, seconds: float, headers: dict[str, str]) -> Seen:
    response = getattr(error, "response", None)
    if response is not None:
        headers = dict(response.headers)
    return Seen(text, seconds, headers, type(error).__name__, " ".join(str(error).split()))
