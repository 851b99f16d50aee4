"""One whole attempt at a candidate: send, read up to the commit point, say what it means."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from multidict import istr

from steer_policies.config import CommitPoint, DialectName
from steer_policies.dialects.base import Progress, StreamReader
from steer_policies.dialects.json_end import JsonEnd
from steer_policies.outcome import SUCCESS, Executed, Failure, Verdict, failed
from steer_policies.plan import Candidate, Plan
from steer_policies.trace_context import safe_request_id
from steer_proxy.engine.attempt import Trace
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.secret import SecretUnavailable
from steer_proxy.http.answer import HELD_COMPLETE, HELD_PLAIN, HELD_PRELUDE, HttpAnswer
from steer_proxy.http.call import Call
from steer_proxy.http.coding import UNDONE, content_coding, decoder
from steer_proxy.http.outbound import Outbound
from steer_proxy.http.response import UpstreamError, UpstreamResponse
from steer_proxy.http.wire import Wire
from steer_proxy.http.witness import Judge, StreamEnd, Witness, seen_through

#: How much of a failing answer is looked at to classify it, in bytes, after decoding.
LOOKED_AT: Final = 64 * 1024

#: How far a stream must have come to be committed, and how many bytes are held until then.
_ENOUGH: Final = {
    CommitPoint.HEADERS: Progress.PRELUDE,
    CommitPoint.FIRST_TOKEN: Progress.CONTENT,
    CommitPoint.COMPLETE: Progress.COMPLETE,
}
_HELD: Final = {
    CommitPoint.HEADERS: 0,
    CommitPoint.FIRST_TOKEN: HELD_PRELUDE,
    CommitPoint.COMPLETE: HELD_COMPLETE,
}

#: Where providers name a request: OpenAI and most others, Anthropic, Google, Azure, Amazon.
_REQUEST_IDS: Final = (
    istr("x-request-id"),
    istr("request-id"),
    istr("x-goog-request-id"),
    istr("apim-request-id"),
    istr("x-amzn-requestid"),
)


class HttpSender:
    """Carries a call's attempts over HTTP; the engine's `Sender`."""

    def __init__(
        self, call: Call, plan: Plan, outbound: Outbound, wire: Wire, clock: Clock
    ) -> None:
        self._call = call
        self._plan = plan
        self._outbound = outbound
        self._wire = wire
        self._clock = clock
        self._keep_text = plan.on_break == "resume" and call.facts.resumable

    async def attempt(self, candidate: Candidate, deadline: float, trace: Trace) -> HttpAnswer:
        """Send the call to a candidate; failures of the upstream come back as failing answers."""
        call = self._call
        started = self._clock.now()
        try:
            request = await self._outbound.request(candidate)
        except SecretUnavailable:
            # Named in the log by whoever looks; the caller can do nothing about it.
            answer = HttpAnswer.without_head(Failure.CREDENTIAL, "secret_unavailable", trace)
            answer.lesson = None  # nothing was sent: no breaker learns from it
            return answer
        timeouts = request.upstream.policy.timeouts
        prompt = call.facts.stream or call.upgrade
        patience = timeouts.first_byte if prompt else timeouts.answer
        response: UpstreamResponse | None = None
        try:
            response = await self._wire.send(
                request.address.origin,
                request.head,
                request.body,
                connect=min(timeouts.connect, max(0.001, deadline - started)),
                patience=patience,
                stall=min(patience, timeouts.idle),
                deadline=deadline,
                trace=trace,
            )
            trace.body, trace.status = response.content, response.status
            trace.request_id = _request_id(response.headers)
            del request  # its head is sent, and a first token may take its time
            if response.status == 101:
                return self._switched(response, trace)
            if call.silence is None or call.silence > timeouts.idle:
                response.limit_silence(timeouts.idle)
            else:
                # The caller's own impatience says nothing about the upstream.
                response.limit_silence(call.silence, Failure.DEADLINE)
            if response.status >= 400:
                response.arm(deadline, Failure.DEADLINE)
                return await self._failing(response, trace)
            by = started + timeouts.first_token
            return await self._promising(response, by, deadline, trace)
        except UpstreamError as error:
            trace.settle()
            if response is not None:
                response.close()
            if error.failure is Failure.CONNECT and self._clock.now() >= deadline:
                # Nor does it when it left no time to connect.
                return HttpAnswer(failed(Failure.DEADLINE, executed=Executed.NO), trace=trace)
            answer = HttpAnswer.without_head(error.failure, error.code, trace)
            if error.failure is Failure.QUEUE:
                answer.lesson = None  # what we lack says nothing of any upstream
            return answer
        except BaseException:
            trace.settle()
            if response is not None:
                response.close()
            raise

    def _switched(self, response: UpstreamResponse, trace: Trace) -> HttpAnswer:
        """101: the answer to a WebSocket handshake, and a fault after anything else."""
        protocol = response.headers.get("Upgrade", "").lower()
        if not self._call.upgrade or not response.protocol.upgraded or protocol != "websocket":
            response.close()
            return HttpAnswer.without_head(Failure.PROTOCOL, trace=trace)
        response.disarm()
        trace.body = None  # what follows is no body
        return HttpAnswer(SUCCESS, response, whole=False, trace=trace)

    def _reader(self, content_type: str, coding: str) -> StreamReader | None:
        if self._call.method == "HEAD":
            return None
        return self._call.dialect.read_stream(
            self._call.facts,
            content_type,
            keep_text=self._keep_text and not coding,  # what is coded is not resumed
            strip_usage=bool(self._call.usage_options),
        )

    async def _failing(self, response: UpstreamResponse, trace: Trace) -> HttpAnswer:
        """An answer that says it is none, looked at as far as it goes."""
        chunks: list[bytes] = []
        size = 0
        try:
            while size <= HELD_PLAIN and (chunk := await response.read()):
                chunks.append(chunk)
                size += len(chunk)
        except UpstreamError:
            verdict = self._classified(response, b"".join(chunks))
            if verdict.executed is not Executed.NO:
                raise
            # Its head has said what matters: the call was not executed.
            response.close()
            answer = HttpAnswer(verdict, response, trace=trace)
            answer.broken = True
            return answer
        held = b"".join(chunks)
        verdict = self._classified(response, held)
        # It may be kept for longer than the call's deadline, while others are asked.
        response.disarm()
        return HttpAnswer(verdict, response, held=held, whole=response.exhausted, trace=trace)

    async def _promising(
        self, response: UpstreamResponse, first_token: float, deadline: float, trace: Trace
    ) -> HttpAnswer:
        """An answer that is good so far; a stream's first token is due by `first_token`."""
        content_type = response.headers.get("Content-Type", "")
        # A redirect's body is no stream, whatever its type.
        coding = content_coding(response.headers)
        reader = self._reader(content_type, coding) if response.status < 300 else None
        trace.reader = reader
        if reader is not None and not coding:
            response.arm_sooner(first_token, Failure.FIRST_TOKEN_TIMEOUT, deadline)
            return await self._stream(response, reader, content_type, deadline, trace)
        response.arm(deadline, Failure.DEADLINE)
        # What is coded can be relayed only as it comes, and judged when it has ended.
        json_end = self._json_end(response, content_type)
        judge = json_end if reader is None else StreamEnd(reader)
        witness = None if judge is None else seen_through(coding, judge)
        return await self._plain(response, content_type, witness, trace)

    def _classified(self, response: UpstreamResponse, held: bytes) -> Verdict:
        seen = _decoded(held, content_coding(response.headers))
        return self._call.dialect.classify(
            self._call.facts, response.status, response.headers, seen, self._clock.wall()
        )

    async def _plain(
        self,
        response: UpstreamResponse,
        content_type: str,
        witness: Witness | None,
        trace: Trace,
    ) -> HttpAnswer:
        """An answer whose end only its framing tells: held whole while that is cheap."""
        limit = HELD_PLAIN
        if self._plan.commit is CommitPoint.HEADERS or _is_live(response, content_type):
            limit = 0
        held = await _read_up_to(response, limit, witness)
        whole = response.exhausted
        verdict = SUCCESS
        if whole and witness is not None and witness.cut:
            # Nothing of it has reached the caller. A coded stream may have said why it ended.
            if trace.reader is None or trace.reader.error is None:
                raise UpstreamError(Failure.TRUNCATED)
            verdict = trace.reader.error
        return HttpAnswer(
            verdict,
            response,
            held=held,
            whole=whole,
            content_type=content_type,
            trace=trace,
            witness=witness,
        )

    def _json_end(self, response: UpstreamResponse, content_type: str) -> Judge | None:
        """What tells the end of an answer that ends where its connection does; None for others."""
        headers, call = response.headers, self._call
        if "Content-Length" in headers or "Transfer-Encoding" in headers:
            return None
        if not 200 <= response.status < 300 or response.status == 204 or call.method == "HEAD":
            return None
        if not _is_json(content_type):
            return None
        # A model that has answered has said something; what a tool says, nobody knows.
        steered = call.facts.steered and call.dialect.name is not DialectName.HTTP
        return JsonEnd(needed=steered)

    async def _stream(
        self,
        response: UpstreamResponse,
        reader: StreamReader,
        content_type: str,
        deadline: float,
        trace: Trace,
    ) -> HttpAnswer:
        """A stream the dialect understands: held until it has something to say."""
        commit = self._plan.commit
        enough = _ENOUGH[commit]
        limit = _HELD[commit]
        held: list[bytes] = []
        size = 0
        whole = False
        while reader.error is None and reader.progress < enough:
            if size + reader.held > limit:
                break
            if not (chunk := await read_event_bytes(response, reader)):
                whole = True
                held.append(reader.finish())
                break
            released = reader.feed(chunk)
            size += len(released)
            held.append(released)
            if trace.first_token is None and reader.progress >= Progress.CONTENT:
                trace.first_token = self._clock.now()
                # It has come in time, and what is still to be held may take longer.
                response.arm(deadline, Failure.DEADLINE)
        if whole and reader.progress < Progress.FINISHED and reader.error is None:
            raise UpstreamError(Failure.TRUNCATED)
        hidden = reader.progress < Progress.CONTENT or commit is CommitPoint.COMPLETE
        if reader.error is not None and hidden:
            # Nothing of this answer has reached the caller: all of it is this error.
            held.append(reader.error_event)
            response.close()
            verdict, whole = reader.error, True
        else:
            verdict = SUCCESS
            response.disarm()
        answer = HttpAnswer(
            verdict,
            response,
            held=b"".join(held),
            whole=whole,
            reader=reader,
            content_type=content_type,
            trace=trace,
        )
        # Content came, and an error with it: committed, but no proof of health.
        answer.lesson = reader.error or verdict
        return answer


#: How long a stream that has said everything is waited on for the rest, in seconds: what it counts
#: and its terminal marker belong to the answer, and come at once, or after a little bookkeeping.
TERMINAL_GRACE: Final = 10.0


async def read_event_bytes(response: UpstreamResponse, reader: StreamReader) -> bytes:
    """The next bytes of a stream; b"" at its end.

    A stream that has said everything but keeps its connection open without a terminal marker ends
    after a grace.

    Raises:
        UpstreamError: when the stream broke before it was finished.
    """
    if reader.progress < Progress.FINISHED:
        return await response.read()
    if response.ended:
        return response.read_ready()
    response.limit_silence(min(response.patience, TERMINAL_GRACE))
    try:
        return await response.read()
    except UpstreamError:
        response.close()
        return b""


def _request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's own name for an attempt, which its support will ask for."""
    for name in _REQUEST_IDS:
        if (named := headers.get(name)) is not None:
            return safe_request_id(named)
    return None


def _is_live(response: UpstreamResponse, content_type: str) -> bool:
    """Whether the caller wants the bytes as they come: event streams, media of unknown length."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return True
    return "Content-Length" not in response.headers and not (
        kind.endswith("json") or kind.startswith("text/") or kind == ""
    )


def _is_json(content_type: str) -> bool:
    """Whether a body is said to be JSON, in the encoding that JSON has (RFC 8259, section 8.1)."""
    kind, _, parameters = content_type.lower().partition(";")
    return kind.strip().endswith("json") and (
        "charset" not in parameters or "utf-8" in parameters or "utf8" in parameters
    )


async def _read_up_to(
    response: UpstreamResponse, limit: int, witness: Witness | None = None
) -> bytes:
    """The body, or as much of it as came before more than `limit` bytes were held.

    What tells its end is fed as they come.
    """
    chunk = response.read_ready()
    if witness is not None:
        await witness.feed(chunk)
    if response.ended or limit == 0:
        return chunk
    chunks = [chunk]
    size = len(chunk)
    while size <= limit and (chunk := await response.read()):
        if witness is not None:
            await witness.feed(chunk)
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _decoded(body: bytes, coding: str) -> bytes:
    """The beginning of a body without its content coding, as far as that is known and cheap."""
    if coding not in UNDONE:
        return body[:LOOKED_AT]
    try:
        return decoder().decompress(body, LOOKED_AT)
    except zlib.error:
        return b""
