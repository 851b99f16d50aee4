"""What a tool's exception means, in the policies' words.

Classes decide, messages never do. An exception that says nothing of itself is asked for its HTTP
status, as the provider SDKs' errors carry one, then for the exception it was raised from, as those
SDKs do with what the network raised.
"""

from __future__ import annotations

import errno
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final

from steer_llm_sdk.checks import is_finite
from steer_llm_sdk.errors import OrchestratorError, ProviderError, ToolExecutionError
from steer_policies.classify import MAYBE_EXECUTED, by_status
from steer_policies.config import DialectName
from steer_policies.outcome import Executed, Failure, HintSource, RetryHint, Verdict, failed
from steer_policies.retry_after import read_retry_hint

#: How far back the causes of an exception are followed.
MAX_CAUSES: Final = 8

#: Errors of the operating system at which no connection came to be.
_UNREACHED: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNREFUSED EHOSTUNREACH EHOSTDOWN ENETUNREACH ENETDOWN EADDRNOTAVAIL EADDRINUSE"
    ).split()
    if hasattr(errno, name)
)

#: Errors of the operating system at which one was lost.
_LOST: Final = frozenset(
    getattr(errno, name)
    for name in "ECONNRESET ECONNABORTED EPIPE ESHUTDOWN ENOTCONN ENETRESET".split()
    if hasattr(errno, name)
)


#: Of the errors that say that the request is at fault, those that may as well be an answer's: it
#: was not JSON, not text, or not of the shape that the tool expected.
_LATE: Final = (TypeError, json.JSONDecodeError, UnicodeDecodeError)

#: What Python raises for bugs, and the SDK for another run's terms: the same again does not mend
#: them, and no provider is to blame.
_FAULTS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    OrchestratorError,
)

#: What the network's errors are called by the HTTP libraries that give them classes of their own:
#: aiohttp, httpx (which the provider SDKs use), requests, urllib, http.client, asyncio's streams.
_NAMED: Final[Mapping[str, Failure]] = {
    "ConnectError": Failure.CONNECT,
    "ConnectTimeout": Failure.CONNECT,
    "PoolTimeout": Failure.CONNECT,
    "NewConnectionError": Failure.CONNECT,
    "APITimeoutError": Failure.FIRST_BYTE_TIMEOUT,
    "Timeout": Failure.FIRST_BYTE_TIMEOUT,
    "TimeoutException": Failure.FIRST_BYTE_TIMEOUT,
    "NetworkError": Failure.RESET,
    "ServerDisconnectedError": Failure.RESET,
    "RemoteProtocolError": Failure.PROTOCOL,
    "ChunkedEncodingError": Failure.TRUNCATED,
    "ClientPayloadError": Failure.TRUNCATED,
    "IncompleteRead": Failure.TRUNCATED,
    "IncompleteReadError": Failure.TRUNCATED,
    "BadStatusLine": Failure.PROTOCOL,
    "ConnectionError": Failure.RESET,
    "URLError": Failure.RESET,
}


def verdict_on(error: BaseException, wall: float) -> Verdict:
    """What a tool's exception means; `wall` is Unix time in seconds, for delays told as dates.

    ValueError and TypeError say that the request is at fault, the errors that Python raises for
    bugs that the tool is. What nothing is known of counts as the provider's failure, and as one
    that may have had an effect.
    """
    name = type(error).__name__
    # A certificate that does not verify is a ValueError, too: by Python's ssl, not by a tool.
    if isinstance(error, (ValueError, TypeError)) and not isinstance(error, OSError):
        executed = Executed.MAYBE if isinstance(error, _LATE) else Executed.NO
        return failed(Failure.REJECTED, executed=executed, code=name)
    for each in _causes(error):
        verdict = _of(each, wall)
        if verdict is not None:
            return verdict
    if _is_fault(error):
        return failed(Failure.FAULT, code=name)
    return failed(Failure.SERVER_ERROR, executed=Executed.MAYBE, code=name)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an exception, or what it was raised from, carries."""
    return next((found for each in _causes(error) if (found := _status(each)) is not None), None)


def provider_of(error: BaseException) -> str | None:
    """The provider that an exception names."""
    provider = error.provider if isinstance(error, ProviderError) else None
    return provider if isinstance(provider, str) and provider else None


def _of(error: BaseException, wall: float) -> Verdict | None:
    """What one exception of the chain tells by itself; None when nothing."""
    status = _status(error)
    if status is not None and (failure := by_status(status)) is not None:
        return failed(
            failure,
            executed=Executed.MAYBE if status in MAYBE_EXECUTED else None,
            hint=_hint(error, wall),
            code=str(status),
            again=_again(error),
        )
    failure = _network(error)
    if failure is not None:
        return failed(failure, hint=_asked(error), code=type(error).__name__)
    if isinstance(error, ProviderError):
        executed = Executed.MAYBE
        again = _again(error)
        return failed(
            Failure.SERVER_ERROR, executed=executed, hint=_asked(error), code=None, again=again
        )
    return None


def _network(error: BaseException) -> Failure | None:
    if isinstance(error, TimeoutError):
        return Failure.FIRST_BYTE_TIMEOUT
    if isinstance(error, (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)):
        return Failure.CONNECT
    if isinstance(error, (ConnectionError, ssl.SSLError)):
        return Failure.RESET
    if isinstance(error, OSError):
        if error.errno in _UNREACHED:
            return Failure.CONNECT
        if error.errno in _LOST:
            return Failure.RESET
    for kind in type(error).__mro__:
        if (failure := _NAMED.get(kind.__name__)) is not None:
            return failure
    return None


def _is_fault(error: BaseException) -> bool:
    """Whether an error of which nothing else is known is the tool's own."""
    if isinstance(error, ToolExecutionError):  # a run within the tool: its own tool failed
        return False
    # One of the operating system's that is not the network's: a file is not there, a disk is full.
    disk = isinstance(error, OSError) and error.errno is not None
    return disk or isinstance(error, _FAULTS)


def _status(error: BaseException) -> int | None:
    """The HTTP status an exception carries, by the names that HTTP libraries use."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
                return value
    return None


def _hint(error: BaseException, wall: float) -> RetryHint | None:
    """The delay an answer asked for: told by the exception, or by the answer's header fields."""
    asked = _asked(error)
    if asked is not None:
        return asked
    headers = _headers(error)
    return read_retry_hint(DialectName.HTTP, headers, wall).hint if headers else None


def _again(error: BaseException) -> bool:
    """Whether the same may be tried again: not where an answer says `x-should-retry: false`, as a
    sidecar does that has made its own tries. The provider SDKs obey it, too."""
    if getattr(error, "should_retry", None) is False:
        return False
    return _headers(error).get("x-should-retry", "").strip().lower() != "false"


def _headers(error: BaseException) -> dict[str, str]:
    """The header fields of the answer that an exception carries."""
    for holder in (getattr(error, "response", None), error):
        headers: Any = getattr(holder, "headers", None)
        if isinstance(headers, Mapping):
            return {str(name).lower(): str(value) for name, value in headers.items()}
    return {}


def _asked(error: BaseException) -> RetryHint | None:
    seconds: Any = getattr(error, "retry_after", None)
    if not is_finite(seconds) or seconds < 0:
        return None
    return RetryHint(float(seconds), HintSource.RETRY_AFTER)


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if found is None:
            return
        yield found
        found = found.__cause__
