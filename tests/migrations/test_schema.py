"""The schema is the one the code writes, and the same in both databases."""

from __future__ import annotations

from typing import Final

import pytest

from steer_proxy.ledger import migrate
from steer_proxy.ledger.values import AttemptRow, BreakerEventRow, CallRow, ChunkRow
from tests.migrations.places import Place, PostgresPlace, SqlitePlace
from tests.support.ledger_data import BASE_US, LedgerData, OwnerRow, made_up

ROWS: Final = {
    "owners": OwnerRow,
    "requests": CallRow,
    "attempts": AttemptRow,
    "response_chunks": ChunkRow,
    "breaker_events": BreakerEventRow,
}
VIEWS: Final = ("v_attempts", "v_idempotency", "v_spend", "v_wasted", "v_upstream_health")
INDEXES: Final = {
    "requests_live_key",
    "requests_started",
    "requests_request_id",
    "requests_trace_id",
    "requests_idem_key",
    "requests_served_from",
    "requests_expires",
    "attempts_upstream_started",
    "attempts_started",
    "breaker_events_at",
}
#: How SQLite and PostgreSQL call a type.
TYPES: Final = {
    ("VARCHAR(36)", "CHARACTER VARYING(36)"),
    ("TEXT", "TEXT"),
    ("TEXT", "JSONB"),
    ("BIGINT", "BIGINT"),
    ("SMALLINT", "SMALLINT"),
    ("BLOB", "BYTEA"),
}


def test_nothing_else_is_made(place: Place) -> None:
    """Exactly the tables, views and indexes that are documented."""
    migrate.upgrade(place.url)
    assert place.names() == {*ROWS, *VIEWS, *INDEXES, "steer_meta", "alembic_version"}


@pytest.mark.parametrize("table", ROWS)
def test_columns_are_the_row_types(table: str, place: Place) -> None:
    """Names and order: a row is its own tuple of parameters."""
    migrate.upgrade(place.url)
    assert tuple(place.columns(table)) == ROWS[table]._fields  # type: ignore[attr-defined]


def test_both_databases_have_the_same_columns(
    sqlite_place: SqlitePlace, postgres_place: PostgresPlace
) -> None:
    """The same names, corresponding types, NULL allowed in the same places."""
    migrate.upgrade(sqlite_place.url)
    migrate.upgrade(postgres_place.url)
    for table in (*ROWS, "steer_meta"):
        ours, theirs = sqlite_place.columns(table), postgres_place.columns(table)
        assert list(ours) == list(theirs)
        for name in ours:
            assert (ours[name][0], theirs[name][0]) in TYPES, f"{table}.{name}"
            assert ours[name][1] == theirs[name][1], f"{table}.{name}"
    for view in VIEWS:
        assert list(sqlite_place.columns(view)) == list(postgres_place.columns(view))


def test_units_are_in_the_names(sqlite_place: SqlitePlace) -> None:
    """Times and money are 64-bit numbers; what may be summed is a number; flags are small."""
    migrate.upgrade(sqlite_place.url)
    flags = {"stream", "ambiguous", "idem_live", "reused_conn", "wasted"}
    for table in ROWS:
        for name, (kind, _) in sqlite_place.columns(table).items():
            if name.endswith(("_us", "_nusd")) or name.startswith(("tokens_", "bytes_")):
                assert kind == "BIGINT", f"{table}.{name}"
            assert (kind == "SMALLINT") == (name.removeprefix("attempt_") in flags), (
                f"{table}.{name}"
            )


@pytest.mark.parametrize(("live", "allowed"), [(1, False), (None, True)])
def test_a_key_has_one_live_record(live: int | None, allowed: bool, place: Place) -> None:
    """The database itself refuses a second; those that are no longer live do not count."""
    migrate.upgrade(place.url)
    data = LedgerData()
    data.owners = [OwnerRow("o", "i", "v", BASE_US, BASE_US)]
    data.keyed("k", 0)
    data.keyed("k", 1, idem_live=live)
    data.attempt(data.calls[0].id)
    whole = made_up()
    data.chunks, data.events = whole.chunks, whole.events
    if allowed:
        place.fill(data)
        assert place.run("SELECT COUNT(*) FROM requests") == [(2,)]
    else:
        with pytest.raises(Exception, match=r"(?i)unique"):
            place.fill(data)


def test_a_claim_infers_the_live_index(place: Place) -> None:
    """`ON CONFLICT (idem_scope) WHERE idem_live = 1` finds its index: a lost race is no error."""
    migrate.upgrade(place.url)
    claim = (
        "INSERT INTO requests (id, request_id, started_us, idem_scope, idem_live) "
        "VALUES ('{0}', '{0}', 0, 'scope', 1) "
        "ON CONFLICT (idem_scope) WHERE idem_live = 1 DO NOTHING RETURNING id"
    )
    assert place.run(claim.format("a")) == [("a",)]
    assert place.run(claim.format("b")) == []


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT id FROM requests WHERE idem_scope = 's' AND idem_live = 1", "requests_live_key"),
        ("SELECT id FROM requests WHERE idem_key = 'k'", "requests_idem_key"),
        ("SELECT COUNT(*) FROM requests WHERE served_from = 'x'", "requests_served_from"),
        ("SELECT id FROM requests WHERE trace_id = 't'", "requests_trace_id"),
        ("SELECT id FROM requests WHERE idem_live = 1 AND expires_us < 5", "requests_expires"),
        ("SELECT id FROM requests WHERE started_us < 5", "requests_started"),
        ("SELECT id FROM v_spend WHERE started_us < 5", "requests_started"),
        ("SELECT n FROM attempts WHERE started_us < 5", "attempts_started"),
        ("SELECT id FROM v_idempotency WHERE idem_key = 'k'", "requests_idem_key"),
    ],
)
def test_questions_find_their_index(query: str, index: str, sqlite_place: SqlitePlace) -> None:
    """Also through the views, and where the index is a partial one."""
    migrate.upgrade(sqlite_place.url)
    plan = " ".join(str(row[3]) for row in sqlite_place.run(f"EXPLAIN QUERY PLAN {query}"))
    assert f"INDEX {index} " in plan, plan


def test_finishing_a_call_is_a_hot_update(postgres_place: PostgresPlace) -> None:
    """PostgreSQL rewrites the row within its page and touches no index: neither when a call is
    sent nor when it completes, as long as its expiry stays."""
    migrate.upgrade(postgres_place.url)
    calls = 50
    insert = (
        "INSERT INTO requests (id, request_id, started_us, path, idem_key, idem_scope, idem_fp, "
        "idem_state, idem_live, idem_epoch, owner_id, expires_us) VALUES ('{0}', 'r', 1, "
        "'/v1/chat/completions', 'k', repeat('{0}', 32), repeat('f', 64), 'claimed', 1, 1, 'o', 9)"
    )
    send = "UPDATE requests SET idem_state = 'sent', sent_us = 2 WHERE id = '{0}'"
    complete = (
        "UPDATE requests SET idem_state = 'completed', status = 200, outcome = 'ok', ended_us = 3, "
        "cost_nusd = 5, tokens_in = 10, upstream = 'azure-eu', resp_headers = repeat('h', 300), "
        "resp_sha256 = repeat('5', 64), resp_bytes = 5, resp_chunks = 1, expires_us = 9 "
        "WHERE id = '{0}'"
    )
    statements = [
        statement.format(f"{number:02d}")
        for number in range(calls)
        for statement in (insert, send, complete)
    ]
    ((updates, hot),) = postgres_place.run(
        *statements,
        "SELECT pg_stat_force_next_flush()",
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'requests'",
    )
    assert updates == 2 * calls
    assert hot == updates
