"""The checker finds every violation it is there for, and none where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.torture.checker import Evidence, LedgerRow, check
from tests.torture.history import EXECUTION, TERMINAL, Call, End, Marker, Try
from tests.torture.provider_log import Arrival

CALL = Call("k-1", "ann")
BOB = Call("k-1", "bob")
STREAM = Call("k-2", "ann", stream=True)
RERUN = Call("k-3", "ann", rerun=True)
MARKER = Marker("k-1", "ann", 0)


def seen(
    began: float,
    status: int | None = 200,
    *,
    call: Call = CALL,
    payload: int = 0,
    end: End = End.COMPLETE,
    body: bytes = b"answer",
    execution: str | None = "k-1/ann/0 1",
    final: bool = False,
    **fields: str,
) -> Try:
    """A try that took half a second."""
    pairs = [(name.replace("_", "-"), value) for name, value in fields.items()]
    if execution is not None and status is not None and status < 300:
        pairs.append((EXECUTION, execution))
    return Try(call, payload, "one", began, began + 0.5, end, status, tuple(pairs), body, final)


def refused(began: float, code: str, status: int = 409, **more: Any) -> Try:
    """A try that Steer answered with an error of its own."""
    body = b'{"error": {"code": "%b"}}' % code.encode()
    return seen(began, status, body=body, execution=None, **more)


def arrived(
    number: int, at: float, status: int | None = 200, marker: Marker = MARKER, ended: float = 99.0
) -> Arrival:
    return Arrival(marker, number, at, status, True, ended)


def row(
    name: str = "r1",
    state: str = "completed",
    *,
    key: str = "k-1",
    scope: str = "s1",
    live: bool = True,
    epoch: int = 1,
    lapsed: bool = True,
) -> LedgerRow:
    return LedgerRow(name, key, scope, state, live, epoch, lapsed)


GOOD = {
    "a call and its replays": Evidence(
        [seen(1), seen(2, date="now", idempotency_status="replayed"), seen(9, final=True)],
        [arrived(1, 1.1)],
        [row()],
    ),
    "executed once, after failures that are none": Evidence(
        [seen(1, 500, execution=None), seen(2, 429, execution=None), seen(3)],
        [arrived(1, 1.1, 500, ended=1.2), arrived(2, 2.1, 429, ended=2.2), arrived(3, 3.1)],
        [row("r1", "released", live=False), row("r2", "released", live=False), row("r3")],
    ),
    "released, and claimed anew": Evidence(
        [seen(1, 500, execution=None), seen(2)],
        [arrived(1, 1.1, 500, ended=1.2), arrived(2, 2.1)],
        [row("r2"), row("r1", "released", live=False)],
    ),
    "rerun, released, and claimed anew": Evidence(
        rows=[
            row("r1", "uncertain", live=False),
            row("r2", "released", live=False, epoch=2),
            row("r3"),
        ]
    ),
    "a request that never came whole": Evidence(
        [seen(1, None, end=End.CUT, body=b""), seen(2)],
        [replace(arrived(1, 1.1, None), whole=False, ended=1.2), arrived(2, 2.1)],
        [row()],
    ),
    "uncertain for good": Evidence(
        [seen(1, None, end=End.CUT, body=b""), refused(2, "steer_key_uncertain", final=True)],
        [arrived(1, 1.1, None)],
        [row("r1", "sent")],
    ),
    "a stream that broke, and its whole": Evidence(
        [
            seen(1, call=STREAM, end=End.LEFT, body=b"data: 1\n\n", execution="k-2/ann/0 1"),
            seen(
                1,
                call=STREAM,
                end=End.CUT,
                body=b'data: 1\n\ndata: {"error":{}}\n\n',
                execution="k-2/ann/0 1",
            ),
            seen(2, call=STREAM, body=b"data: 1\n\n" + TERMINAL[0], execution="k-2/ann/0 1"),
        ],
        [arrived(1, 1.1, marker=Marker("k-2", "ann", 0))],
        [row(key="k-2")],
    ),
    "another payload, refused": Evidence(
        [seen(1), refused(2, "steer_key_reused", 422, payload=1), seen(3)],
        [arrived(1, 1.1)],
        [row()],
    ),
    "another payload, after the first was released": Evidence(
        [
            seen(1, 500, execution=None),
            seen(2, payload=1, execution="k-1/ann/1 2"),
        ],
        [
            arrived(1, 1.1, 500, ended=1.2),
            arrived(2, 2.1, marker=Marker("k-1", "ann", 1)),
        ],
        [row("r1", "released", live=False), row("r2")],
    ),
    "two principals": Evidence(
        [seen(1), seen(1, call=BOB, execution="k-1/bob/0 2")],
        [arrived(1, 1.1), arrived(2, 1.1, marker=Marker("k-1", "bob", 0))],
        [row(), row("r2", scope="s2")],
    ),
    "a declared rerun": Evidence(
        [seen(5, call=RERUN, execution="k-3/ann/0 2", idempotency_status="rerun")],
        [
            arrived(1, 1.1, None, marker=Marker("k-3", "ann", 0)),
            arrived(2, 5.1, marker=Marker("k-3", "ann", 0)),
        ],
        [row("r1", "sent", key="k-3", live=False), row("r2", key="k-3", epoch=2)],
    ),
    "a ledger that was away": Evidence(
        [seen(1), refused(2, "steer_ledger_unavailable", 503), seen(3)], [arrived(1, 1.1)], [row()]
    ),
    "an answer that could not be recorded, and says so": Evidence(
        [seen(1, idempotency_status="not-stored"), refused(2, "steer_key_uncertain")],
        [arrived(1, 1.1)],
        [row("r1", "sent")],
    ),
    "a stream that ended when the database had been away for long": Evidence(
        [
            seen(4, call=STREAM, body=TERMINAL[0], execution="k-2/ann/0 1"),
            refused(6, "steer_key_uncertain", call=STREAM),
        ],
        [arrived(1, 4.1, marker=Marker("k-2", "ann", 0))],
        [row("r1", "sent", key="k-2")],
        outages=[(1.0, 2.0), (2.5, 3.2), (3.8, 5.0), (9.0, 9.5)],
    ),
    "rows that were over are removed": Evidence(
        [seen(1), seen(9, final=True)],
        [arrived(1, 1.1)],
        [row("r0", "released", live=False), row()],
        [row()],
    ),
    "an answer too large to keep": Evidence(
        [seen(1), refused(2, "steer_result_not_stored")], [arrived(1, 1.1)], [row()]
    ),
}


@pytest.mark.parametrize("evidence", GOOD.values(), ids=GOOD.keys())
def test_what_is_right(evidence: Evidence) -> None:
    """Nothing is found where everything is as it should be."""
    assert check(evidence) == []
    assert sum(evidence.checked.values()) > 0


BAD = [
    (1, "executed twice", Evidence([seen(1)], [arrived(1, 1.1, None), arrived(2, 1.2)])),
    (1, "executed after a 504", Evidence([seen(1)], [arrived(1, 1.1, 504), arrived(2, 1.2)])),
    (
        1,
        "a rerun that no row declares",
        Evidence(
            [seen(5, call=RERUN, execution="k-3/ann/0 2")],
            [
                arrived(1, 1.1, None, marker=Marker("k-3", "ann", 0)),
                arrived(2, 5.1, marker=Marker("k-3", "ann", 0)),
            ],
            [row("r1", "claimed", key="k-3", live=False), row("r2", key="k-3", epoch=2)],
        ),
    ),
    (2, "another body", Evidence([seen(1), seen(2, body=b"other")], [arrived(1, 1.1)])),
    (2, "another status", Evidence([seen(1), seen(2, 201)], [arrived(1, 1.1)])),
    (2, "another field", Evidence([seen(1), seen(2, openai_version="2")], [arrived(1, 1.1)])),
    (
        2,
        "a broken answer that is none of it",
        Evidence([seen(1), seen(2, end=End.LEFT, body=b"ansWer")], [arrived(1, 1.1)]),
    ),
    (
        3,
        "another payload reached the provider",
        Evidence(
            [seen(1), refused(1, "steer_key_reused", 422, payload=1)],
            [arrived(1, 1.1), arrived(2, 1.2, 400, marker=Marker("k-1", "ann", 1))],
        ),
    ),
    (
        3,
        "another payload while the first was under way",
        Evidence(
            [seen(1, 500, execution=None)],
            [
                arrived(1, 1.1, 500, ended=1.4),
                arrived(2, 1.2, 500, marker=Marker("k-1", "ann", 1)),
            ],
        ),
    ),
    (
        3,
        "the answer to another payload",
        Evidence([seen(1), seen(2, payload=1)], [arrived(1, 1.1)]),
    ),
    (4, "two live rows", Evidence(rows=[row("r1", "sent"), row("r2", epoch=2)])),
    (
        4,
        "the lower epoch is the live one",
        Evidence(rows=[row("r1"), row("r2", "sent", live=False, epoch=2)]),
    ),
    (
        4,
        "completed after it was replaced",
        Evidence(rows=[row("r1", live=False), row("r2", epoch=2)]),
    ),
    (
        4,
        "two rows of one epoch",
        Evidence(rows=[row("r1", "sent", live=False), row("r2")]),
    ),
    (
        5,
        "forgotten: run again",
        Evidence([seen(1), seen(3, final=True)], [arrived(1, 1.1, 500), arrived(2, 3.1)]),
    ),
    (
        5,
        "forgotten: uncertain",
        Evidence([seen(1), refused(2, "steer_key_uncertain")], [arrived(1, 1.1)]),
    ),
    (
        5,
        "a stream forgotten by a database that was away for a moment",
        Evidence(
            [
                seen(2, call=STREAM, body=TERMINAL[0], execution="k-2/ann/0 1"),
                refused(6, "steer_key_uncertain", call=STREAM),
            ],
            [arrived(1, 2.1, marker=Marker("k-2", "ann", 0))],
            outages=[(2.0, 5.0)],
        ),
    ),
    (
        5,
        "not replayed when all was well",
        Evidence(
            [seen(1), refused(9, "steer_ledger_unavailable", 503, final=True)], [arrived(1, 1.1)]
        ),
    ),
    (6, "no answer at last", Evidence([seen(9, None, end=End.LEFT, body=b"", final=True)])),
    (
        6,
        "in progress at last",
        Evidence([refused(9, "steer_key_in_progress", final=True)]),
    ),
    (6, "a row in progress at last", Evidence(rows=[row("r1", "sent", lapsed=False)])),
    (
        7,
        "somebody else's answer",
        Evidence([seen(1), seen(2, call=BOB)], [arrived(1, 1.1)], [row(), row("r2", scope="s2")]),
    ),
    (8, "a live row is gone", Evidence([seen(1)], [arrived(1, 1.1)], [])),
    (8, "a live row was purged", Evidence([seen(1)], [arrived(1, 1.1)], [row()], [])),
    (
        8,
        "one of two rows is gone",
        Evidence(
            [seen(1), seen(1, call=BOB, execution="k-1/bob/0 2")],
            [arrived(1, 1.1), arrived(2, 1.1, marker=Marker("k-1", "bob", 0))],
            [row()],
        ),
    ),
]


@pytest.mark.parametrize(
    ("invariant", "evidence"),
    [(number, evidence) for number, _, evidence in BAD],
    ids=[f"{number} {what}" for number, what, _ in BAD],
)
def test_what_is_wrong(invariant: int, evidence: Evidence) -> None:
    """Each kind of violation is found, and by its own number."""
    assert {violation.invariant for violation in check(evidence)} == {invariant}
