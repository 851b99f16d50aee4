"""A tool that calls an endpoint through a running sidecar.

The run's ids, budget, quality demands, time limit and idempotency key go along as headers, so that
both see one call: the sidecar retries, and where it says that it has done so, the run does not.
With a key, a second try of the run joins the call that is under way, or gets its stored answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from steer_llm_sdk import checks
from steer_llm_sdk.checks import shown
from steer_llm_sdk.errors import InvalidValue
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.tools import Tool
from steer_llm_sdk.tools.http_answer import (
    MAX_ERROR,
    Events,
    SidecarError,
    about,
    error_in_stream,
    error_of,
)
from steer_llm_sdk.tools.http_request import body_text, steering

if TYPE_CHECKING:
    import aiohttp

    from steer_llm_sdk.streaming.manager import EventManager

__all__ = ["HttpTool", "SidecarError"]

#: How much longer than the sidecar's own time limit its answer is waited for, in seconds.
GRACE: Final = 5.0

#: How long connecting may take, in seconds.
CONNECT: Final = 5.0

#: How long a stream may last, in seconds, as through the sidecar.
MAX_STREAM: Final = 3600.0

_STREAM: Final = "text/event-stream"

Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]


class HttpTool(Tool):
    """Calls `url`, a path under a sidecar such as `http://127.0.0.1:4100/v1/chat/completions`.

    The request is sent as JSON: a dictionary as it is, anything else as `body` makes it. The
    answer's JSON is the output's content (or what `read` makes of it, such as the text of a chat
    completion), its `usage` the output's; what the sidecar says of the call is in
    `metadata["sidecar"]`: `upstream`, `attempts`, `rule`, `request_id`, and `idempotency_status`,
    which is `joined` or `replayed` for an answer that was not paid for again.

    When the run streams and `stream` is given, its members are added to the body (for the LLM
    dialects `{"stream": True}`); each event of a `text/event-stream` is a delta with `event_type`
    `http_event`, its `name` and its `data`. The content is then the list of all data, in order.

    Every call has a connection of its own; with many calls to a sidecar elsewhere, give an
    `aiohttp.ClientSession`, which stays yours to close.

    Raises, from `execute`:
        SidecarError: an answer that is an error (with its status, the delay it asks for, and
            whether to retry), is too large, or broke off.
        OSError, TimeoutError: the sidecar cannot be reached, or does not answer in time.
        InvalidValue: the request is not JSON, or too large.
    """

    def __init__(  # noqa: PLR0913 - what an endpoint needs, each by name
        self,
        name: str,
        url: str,
        *,
        method: str = "POST",
        headers: Headers | None = None,
        provider: str | None = None,
        description: str = "",
        version: str = "1.0.0",
        capabilities: Sequence[str] = (),
        supported_models: Sequence[str] = (),
        default_options: Mapping[str, Any] | None = None,
        resource_requirements: Mapping[str, Any] | None = None,
        body: Callable[[Any, Mapping[str, Any]], Any] | None = None,
        read: Callable[[Any], Any] | None = None,
        stream: Mapping[str, Any] | None = None,
        timeout: float = 600.0,
        max_request: int = 16 * 2**20,
        max_response: int = 16 * 2**20,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        """Make a tool; nothing is connected yet.

        `headers` go with every call and win over the tool's own; a function is asked for them each
        time. `body` is given the request and the options; `read` the answer's JSON (of a stream,
        the list of its events' data). `timeout` is seconds for the whole call at the sidecar, until
        its answer begins; sizes are bytes. `provider` is whom the run's breaker counts, the tool's
        name when there is none.

        Raises:
            InvalidValue: naming the argument.
        """
        checks.text("name", name)
        checks.text("url", url)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidValue("url", f"must be an absolute http or https URL, not {shown(url)}")
        checks.text("method", method)
        checks.number("timeout", timeout, least=0.0, above=True)
        checks.whole("max_request", max_request, least=1)
        checks.whole("max_response", max_response, least=1)
        checks.function("body", body)
        checks.function("read", read)
        self._name = name
        self._url = url
        self._method = method.upper()
        self._headers = headers
        self._provider = provider
        self._description = description
        self._version = version
        self._capabilities = tuple(capabilities)
        self._models = tuple(supported_models)
        self._options = dict(default_options or {})
        self._resources = dict(resource_requirements or {})
        self._body = body
        self._read = read
        self._stream = stream
        self._timeout = timeout
        self._max_request = max_request
        self._max_response = max_response
        self._session = session

    # --- What it declares -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """See `Tool`."""
        return self._name

    @property
    def version(self) -> str:
        """See `Tool`."""
        return self._version

    @property
    def description(self) -> str:
        """See `Tool`."""
        return self._description

    @property
    def provider(self) -> str | None:
        """See `Tool`."""
        return self._provider

    @property
    def supported_models(self) -> Sequence[str]:
        """See `Tool`."""
        return self._models

    @property
    def default_options(self) -> Mapping[str, Any]:
        """See `Tool`."""
        return self._options

    @property
    def capabilities(self) -> Sequence[str]:
        """See `Tool`."""
        return self._capabilities

    @property
    def resource_requirements(self) -> Mapping[str, Any]:
        """See `Tool`."""
        return self._resources

    @property
    def idempotent(self) -> bool:
        """The sidecar is given the run's key: a second call joins the first, or gets its answer."""
        return True

    # --- What it does ---------------------------------------------------------------------------

    async def execute(
        self, request: Any, options: Any = None, event_manager: EventManager | None = None
    ) -> OrchestrationOutput:
        """Make the call. See the class."""
        import aiohttp

        given: Mapping[str, Any] = options or {}
        streams = event_manager is not None and self._stream is not None
        body = self._request_body(request, given, streams=streams)
        headers = self._request_headers(given, streams=streams)
        session = self._session or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        try:
            return await self._call(session, body, headers, event_manager)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
            raise  # an OSError with its number, and a TimeoutError
        except aiohttp.ClientError as error:
            raise ConnectionResetError(f"{self._name}: the connection was lost: {error}") from error
        finally:
            if session is not self._session:
                await session.close()

    def _request_body(self, request: Any, options: Mapping[str, Any], *, streams: bool) -> bytes:
        value = request if self._body is None else self._body(request, options)
        if streams and self._stream and isinstance(value, dict):
            value = {**value, **self._stream}
        data = body_text(value).encode()
        if len(data) > self._max_request:
            raise InvalidValue("request", f"has more than max_request, {self._max_request} bytes")
        return data

    def _request_headers(self, options: Mapping[str, Any], *, streams: bool) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": f"{_STREAM}, application/json" if streams else "application/json",
            "Accept-Encoding": "identity",
            **steering(self._name, options, self._timeout),
        }
        own = self._headers() if callable(self._headers) else self._headers or {}
        names = {name.lower() for name in own}
        return {name: each for name, each in headers.items() if name.lower() not in names} | {**own}

    async def _call(
        self,
        session: aiohttp.ClientSession,
        body: bytes,
        headers: dict[str, str],
        event_manager: EventManager | None,
    ) -> OrchestrationOutput:
        import aiohttp
        import yarl

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT)
        async with asyncio.timeout(self._timeout + GRACE) as limit:
            async with session.request(
                self._method,
                yarl.URL(self._url, encoded=True),
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                status = response.status
                if not 200 <= status < 300:
                    raise error_of(
                        self._name,
                        self._counted,
                        status,
                        response.headers,
                        await _most(response, MAX_ERROR),
                        time.time(),
                    )
                said = about(response.headers)
                kind = response.content_type
                if kind == _STREAM:
                    limit.reschedule(asyncio.get_running_loop().time() + MAX_STREAM)
                    content: Any = await self._follow(response, event_manager, said)
                else:
                    content = self._parsed(kind, await self._whole(response, said), said)
        return self._output(content, said)

    async def _whole(self, response: aiohttp.ClientResponse, said: dict[str, Any]) -> bytes:
        data = bytearray()
        async for piece in response.content.iter_any():
            data += piece
            self._check_size(len(data), said)
        return bytes(data)

    async def _follow(
        self,
        response: aiohttp.ClientResponse,
        event_manager: EventManager | None,
        said: dict[str, Any],
    ) -> list[Any]:
        """The data of a stream's events, told as they come."""
        found: list[Any] = []
        splitter, size = Events(), 0
        async for piece in response.content.iter_any():
            size += len(piece)
            self._check_size(size, said)
            for name, data in splitter.feed(piece):
                if (error := error_in_stream(self._name, self._counted, name, data)) is not None:
                    error.about = said
                    raise error
                found.append(data)
                if event_manager is not None:
                    told = {"event_type": "http_event", "source": self._name, "name": name}
                    upstream = said.get("upstream", self._provider)
                    await event_manager.delta({**told, "data": data}, provider=upstream)
        return found

    def _check_size(self, size: int, said: dict[str, Any]) -> None:
        if size > self._max_response:
            raise SidecarError(
                f"{self._name}: the answer has more than max_response, {self._max_response} bytes",
                self._counted,
                should_retry=False,
                about=said,
            )

    def _parsed(self, kind: str, data: bytes, said: dict[str, Any]) -> Any:
        if not data:
            return None
        if kind != "application/json" and not kind.endswith("+json"):
            if kind.startswith("text/"):
                return data.decode("utf-8", "replace")
            why = f"the answer is {kind}, not JSON"
        else:
            try:
                return json.loads(data)
            except (ValueError, RecursionError):
                why = "the answer says that it is JSON, and is not"
        raise SidecarError(f"{self._name}: {why}", self._counted, should_retry=False, about=said)

    def _output(self, content: Any, said: dict[str, Any]) -> OrchestrationOutput:
        usage = content.get("usage") if isinstance(content, dict) else None
        return OrchestrationOutput(
            content=content if self._read is None else self._read(content),
            usage=dict(usage) if isinstance(usage, dict) else {},
            metadata={"sidecar": said},
        )

    @property
    def _counted(self) -> str:
        return self._provider or self._name


async def _most(response: aiohttp.ClientResponse, most: int) -> bytes:
    """At most so much of a body; what is missing of it is not missed."""
    import aiohttp

    data = bytearray()
    try:
        async for piece in response.content.iter_any():
            data += piece
            if len(data) >= most:
                break
    except aiohttp.ClientError:
        pass
    return bytes(data[:most])
