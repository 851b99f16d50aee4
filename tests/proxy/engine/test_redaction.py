"""Redaction: what the operator's function sees, and what is written when it fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from steer_proxy.engine.redaction import Redaction
from steer_proxy.ledger.values import AttemptRow, Batch, BreakerEventRow, CallRow

CALL = CallRow(
    id="c1",
    request_id="alice's",
    labels='{"team":"alice"}',
    route="chat",
    path="/v1/alice",
    model_requested="ft:alice",
    upstream="openai",
    idem_key="alice-1",
    idem_scope="digest",
)
ATTEMPT = AttemptRow("c1", 1, "openai", model="ft:alice", upstream_request_id="req_alice")
EVENT = BreakerEventRow("e1", 5, kind="breaker", upstream="openai", model="ft:alice", reason="slow")


def no_alice(row: dict[str, str]) -> dict[str, str]:
    """What an operator may write."""
    return {name: value.replace("alice", "x") for name, value in row.items()}


def redaction(function: Any) -> Redaction:
    """With a clock that stands still."""
    return Redaction(function, lambda: 0.0)


def test_every_kind_of_row() -> None:
    """Only text from outside is given, and only what is there; the rest stays as it is."""
    seen: list[dict[str, str]] = []

    def remember(row: dict[str, str]) -> dict[str, str]:
        seen.append(dict(row))
        return no_alice(row)

    result = redaction(remember).batch(Batch([CALL], [ATTEMPT], [EVENT]))
    assert result.calls == [
        CALL._replace(
            request_id="x's",
            labels='{"team":"x"}',
            path="/v1/x",
            model_requested="ft:x",
            idem_key="x-1",
        )
    ]
    assert result.attempts == [ATTEMPT._replace(model="ft:x", upstream_request_id="req_x")]
    assert result.events == [EVENT._replace(model="ft:x")]
    assert seen == [
        {
            "request_id": "alice's",
            "labels": '{"team":"alice"}',
            "path": "/v1/alice",
            "model_requested": "ft:alice",
            "idem_key": "alice-1",
        },
        {"model": "ft:alice", "upstream_request_id": "req_alice"},
        {"model": "ft:alice", "reason": "slow"},
    ]


def test_without_a_function() -> None:
    """Rows stay the very same."""
    batch = Batch([CALL], [ATTEMPT], [EVENT])
    assert redaction(None).batch(batch) is batch
    assert redaction(None).call(CALL) is CALL


@pytest.mark.parametrize(
    ("returned", "path", "labels"),
    [
        ({"path": "/", "labels": "{}"}, "/", "{}"),
        ({"path": None}, None, None),
        ({"path": 7, "labels": {"team": "x"}}, None, None),
        ({"path": "/", "id": "stolen", "route": "stolen", "idem_scope": "stolen"}, "/", None),
    ],
)
def test_what_it_may_return(
    returned: Mapping[str, Any], path: str | None, labels: str | None
) -> None:
    """What it leaves out or is no text is NULL; what it was not given is not touched."""
    row = redaction(lambda _: returned).call(CALL)
    assert (row.path, row.labels, row.model_requested, row.idem_key) == (path, labels, None, None)
    assert (row.id, row.route, row.idem_scope) == ("c1", "chat", "digest")
    assert row.request_id == "c1"  # never NULL


def test_a_row_that_is_finished() -> None:
    """What became known is seen, too; the stored answer and all else stays. Twice is as once."""
    row = CALL._replace(
        model_answered="ft:alice-2",
        status=200,
        outcome="ok",
        cost_nusd=7,
        expires_us=9,
        keyring_id="k1",
        resp_headers="sealed alice",
        resp_bytes=5,
        resp_chunks=1,
        resp_sha256="0",
    )
    none = redaction(lambda _: {})
    done = none.call(row)
    assert done == row._replace(
        request_id="c1",
        labels=None,
        path=None,
        model_requested=None,
        model_answered=None,
        idem_key=None,
    )
    assert none.call(done) == done
    again = redaction(no_alice)
    assert again.call(again.call(row)) == again.call(row)


def _fails(_: dict[str, str]) -> dict[str, str]:
    raise KeyError("alice")


@pytest.mark.parametrize(
    "function",
    [
        _fails,
        lambda _: None,
        lambda _: "alice",
        lambda row: {**row, "labels": "alice"},
        lambda row: {**row, "labels": '["alice"]'},
    ],
)
def test_when_it_fails(function: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of what it was given is written or logged; it is counted, and told once."""
    applied = redaction(function)
    for _ in range(3):
        row = applied.call(CALL)
        assert "alice" not in str(row)
        assert (row.request_id, row.route) == ("c1", "chat")
    assert applied.failures == 3
    (told,) = caplog.messages
    assert "ledger.redact failed" in told
    assert "alice" not in caplog.text


def test_rows_without_such_text() -> None:
    """The function is not asked about what is not there."""
    row = AttemptRow("c1", 1, "openai")
    batch = redaction(_fails).batch(Batch([], [row], []))
    assert batch.attempts == [row]


def test_it_cannot_change_the_row_it_was_given() -> None:
    """A function that empties its argument and then fails has not emptied ours."""

    def rude(row: dict[str, str]) -> dict[str, str]:
        row.clear()
        row["path"] = "/alice"
        raise RuntimeError

    assert "alice" not in str(redaction(rude).call(CALL))
