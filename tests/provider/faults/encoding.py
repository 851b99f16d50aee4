"""Answers under a content coding (RFC 9110 section 8.4), as providers give them to who asks."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Literal

from tests.provider.attempt import Attempt
from tests.provider.choosing import Fault
from tests.provider.steps import Answer, Data, Event, Finish, Step

_WINDOW_BITS = {"gzip": 31, "deflate": 15}


def compressed(coding: Literal["gzip", "deflate"] = "gzip", *, unasked: bool = False) -> Fault:
    """The same answer, compressed, when `Accept-Encoding` allows the coding (or `unasked`).

    In a stream every event is flushed, so that it can be read as soon as it has come.
    """

    def apply(attempt: Attempt, answer: Answer) -> Answer:
        accepted = ",".join(attempt.header_values("accept-encoding"))
        if unasked or accepts(accepted, coding):
            return _compress(answer, coding)
        return answer

    return Fault(f"compressed by {coding}", apply)


def accepts(accepted: str, coding: str) -> bool:
    """Whether an `Accept-Encoding` allows a coding (RFC 9110 section 12.5.3)."""
    weights = {}
    for item in accepted.lower().split(","):
        name, _, parameter = item.partition(";")
        weights[name.strip()] = parameter.replace(" ", "")
    weight = weights.get(coding, weights.get("*", "q=0"))
    return weight not in ("q=0", "q=0.0", "q=0.00", "q=0.000")


def _compress(answer: Answer, coding: str) -> Answer:
    compressor = zlib.compressobj(6, zlib.DEFLATED, _WINDOW_BITS[coding])
    steps: list[Step] = []
    for step in answer.steps:
        if isinstance(step, Event):
            data = compressor.compress(step.data) + compressor.flush(zlib.Z_SYNC_FLUSH)
            steps.append(Event(data, step.role))
        elif isinstance(step, Data):
            steps.append(Data(compressor.compress(step.data) + compressor.flush()))
        elif isinstance(step, Finish):
            if answer.events:
                steps.append(Event(compressor.flush(), "closing"))
            steps.append(step)
        else:
            steps.append(step)
    changed = Answer(tuple(steps))
    head = answer.head.with_headers(("Content-Encoding", coding), ("Vary", "Accept-Encoding"))
    if head.framing == "length":
        head = replace(head, length=len(changed.body))
    return changed.with_head(head)
