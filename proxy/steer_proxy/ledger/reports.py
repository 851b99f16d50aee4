"""What commands ask a ledger: calls by filter, one call with all that belongs to it, sums.

Every name a user can type, of a column or of a group, is looked up here; values are parameters.
Nothing foreign becomes SQL.
"""
# ruff: noqa: S608 - see above

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from steer_policies.idempotency import State
from steer_proxy.ledger.reading import Reader, Row
from steer_proxy.ledger.values import NANO_USD, CallRow

#: A key's states as others see them: a record whose owner's lease is over is uncertain when
#: something may have been sent, else abandoned; one that is no longer its key's (a purge has freed
#: the key after its retention, or another took its place) is past, whatever `idem_state` it ended
#: in.
STATES: Final = (*(str(state) for state in State), "abandoned", "past")

#: Where a call's row and its owner's lease are; `:now` is the ledger's time.
_CALLS: Final = "FROM requests AS r LEFT JOIN owners AS o ON o.id = r.owner_id"
_LAPSED: Final = "COALESCE(o.lease_until_us, 0) <= :now"
_STATE: Final = f"""CASE
    WHEN r.idem_live IS NULL AND r.idem_state <> 'released' THEN 'past'
    WHEN r.idem_state = 'sent' AND {_LAPSED} THEN 'uncertain'
    WHEN r.idem_state = 'claimed' AND {_LAPSED} THEN 'abandoned'
    ELSE r.idem_state END"""

#: What a call wasted, as far as known. Where its row does not tell, since one of several prices was
#: not known or another had taken its key over, its attempts do, as in `v_spend`.
_WASTED: Final = """COALESCE(r.wasted_nusd, (
    SELECT SUM(a.cost_nusd) FROM attempts AS a WHERE a.request = r.id AND a.wasted = 1))"""

_DERIVED: Final = {
    "started_at": "r.started_us",
    "ended_at": "r.ended_us",
    "sent_at": "r.sent_us",
    "expires_at": "r.expires_us",
    "model": "COALESCE(r.model_answered, r.model_requested)",
    "state": _STATE,
    "duration_ms": "r.duration_us / 1000.0",
    "wait_ms": "r.wait_us / 1000.0",
    "first_token_ms": "r.first_token_us / 1000.0",
    "cost_usd": f"r.cost_nusd / {NANO_USD}.0",
    "wasted_usd": f"{_WASTED} / {NANO_USD}.0",
    "avoided_usd": f"r.avoided_nusd / {NANO_USD}.0",
    "spent_usd": f"CASE WHEN r.cost_nusd IS NOT NULL OR {_WASTED} IS NOT NULL THEN "
    f"(COALESCE(r.cost_nusd, 0) + COALESCE({_WASTED}, 0)) / {NANO_USD}.0 END",
}

#: Columns of a list by name: those of the table `requests`, and some that are made of them, named
#: as in the views. Stored headers belong to the answer.
COLUMNS: Final[Mapping[str, str]] = MappingProxyType(
    _DERIVED | {name: f"r.{name}" for name in CallRow._fields if name != "resp_headers"}
)

_ALWAYS_THERE: Final = frozenset({"id", "request_id", "started_at", "started_us"})

#: Columns of Unix microseconds that are told as dates.
DATES: Final = frozenset({"started_at", "ended_at", "sent_at", "expires_at", "settled_at"})

#: What sums can be taken by, besides `label:NAME` and `day`.
GROUPS: Final = (
    "model",
    "route",
    "upstream",
    "caller",
    "instance",
    "dialect",
    "operation",
    "rule",
    "outcome",
    "status",
)

_PIECES: Final = 64
"""Pieces of an answer read at a time: 4 MiB at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which calls are meant; None for all. Times are Unix microseconds, `until_us` excluded."""

    since_us: int | None = None
    until_us: int | None = None
    route: str | None = None
    upstream: str | None = None
    model: str | None = None
    outcome: str | None = None
    key: str | None = None
    request_id: str | None = None
    state: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def where(self, reader: Reader) -> tuple[str, Row]:
        """The condition, and its parameters."""
        conditions = ["1 = 1"]
        parameters: Row = {"now": reader.now_us()}
        for name, condition in _CONDITIONS.items():
            if (value := getattr(self, name)) is not None:
                conditions.append(condition)
                parameters[name] = value
        for index, (label, text) in enumerate(self.labels.items()):
            name = f"label{index}"
            parameters[name], parameters[f"text{index}"] = reader.label_name(label), text
            conditions.append(f"{reader.label(name)} = :text{index}")
        return " AND ".join(conditions), parameters


_CONDITIONS: Final = {
    "since_us": "r.started_us >= :since_us",
    "until_us": "r.started_us < :until_us",
    "route": "r.route = :route",
    "upstream": "r.upstream = :upstream",
    "model": "(r.model_answered = :model OR r.model_requested = :model)",
    "outcome": "r.outcome = :outcome",
    "key": "r.idem_key = :key",
    "request_id": "r.request_id = :request_id",
    "state": f"{_STATE} = :state",
}


def calls(
    reader: Reader, filters: Filters, columns: Sequence[str], sort: str, limit: int
) -> list[Row]:
    """The calls a filter finds. `sort` is a column, with `-` before it for the greatest first.

    Raises:
        KeyError: for a name that is no column.
    """
    where, parameters = filters.where(reader)
    chosen = ", ".join(f"{COLUMNS[name]} AS {name}" for name in columns)
    order = COLUMNS[sort.removeprefix("-")]
    way = "DESC" if sort.startswith("-") else "ASC"
    if sort.removeprefix("-") not in _ALWAYS_THERE:
        # What is not known goes last, whichever way. Where nothing is missing it is not said, so
        # that PostgreSQL can use the index.
        way += " NULLS LAST"
    query = f"""
SELECT {chosen} {_CALLS} WHERE {where}
ORDER BY {order} {way}, r.started_us DESC, r.id DESC LIMIT :limit
"""
    return reader.rows(query, parameters | {"limit": limit})


def known(reader: Reader, column: str, limit: int = 100) -> list[str]:
    """The values a text column of calls has."""
    sql = COLUMNS[column]
    query = (
        f"SELECT DISTINCT {sql} AS found FROM requests AS r WHERE {sql} IS NOT NULL LIMIT :limit"
    )
    return [str(row["found"]) for row in reader.rows(query, {"limit": limit})]


# --- One call -------------------------------------------------------------------------------------


def named(reader: Reader, name: str, limit: int = 100) -> list[Row]:
    """The calls that a row's id, a key or a request id names, newest first: the first of these
    three that names any."""
    chosen = ", ".join(f"{sql} AS {column}" for column, sql in COLUMNS.items())
    for column in ("id", "idem_key", "request_id"):
        query = f"""
SELECT {chosen}, r.resp_headers, o.instance AS owner_instance, o.lease_until_us
{_CALLS} WHERE r.{column} = :name ORDER BY r.started_us DESC, r.id DESC LIMIT :limit
"""
        found = reader.rows(query, {"name": name, "limit": limit, "now": reader.now_us()})
        if found:
            return found
    return []


def attempts(reader: Reader, id_: str) -> list[Row]:
    """A call's attempts, in order."""
    return reader.rows("SELECT * FROM v_attempts WHERE request = :id ORDER BY n", {"id": id_})


def duplicates(reader: Reader, id_: str, limit: int = 100) -> list[Row]:
    """The calls that were served from a call's answer, oldest first."""
    query = """
SELECT id, request_id, started_us AS started_at, idem_role, status, outcome, sdk_retry, avoided_nusd
FROM requests WHERE served_from = :id ORDER BY started_us, id LIMIT :limit
"""
    return reader.rows(query, {"id": id_, "limit": limit})


def earlier(reader: Reader, call: Row, limit: int = 100) -> list[Row]:
    """The calls that were made for the key of a call before it was, newest first: a key is free
    again when its call was released, settled by hand, taken over, or its retention was over."""
    if call["idem_role"] != "owner" or call["idem_scope"] is None:
        return []
    names = ("started_at", "id", "state", "idem_state", "status", "outcome", "spent_usd")
    chosen = ", ".join(f"{COLUMNS[name]} AS {name}" for name in names)
    by_key = "" if call["idem_key"] is None else "r.idem_key = :idem_key AND"  # it has an index
    query = f"""
SELECT {chosen} {_CALLS}
WHERE {by_key} r.idem_scope = :idem_scope AND r.idem_role = 'owner'
    AND (r.started_us < :started_us OR (r.started_us = :started_us AND r.id < :id))
ORDER BY r.started_us DESC, r.id DESC LIMIT :limit
"""
    meant = {name: call[name] for name in ("idem_key", "idem_scope", "started_us", "id")}
    return reader.rows(query, meant | {"limit": limit, "now": reader.now_us()})


def settled(reader: Reader, call: Row) -> list[Row]:
    """Who settled a call's key by hand, when and how, oldest first."""
    query = """
SELECT at_us AS settled_at, actor, from_state, to_state, reason FROM breaker_events
WHERE request = :id AND kind = 'manual' AND at_us >= :started_us ORDER BY at_us, id
"""
    return reader.rows(query, {name: call[name] for name in ("id", "started_us")})


def pieces(reader: Reader, id_: str) -> Iterable[Row]:
    """A stored answer's pieces, in order, a few at a time."""
    after = -1
    while True:
        found = reader.rows(
            """
SELECT request, seq, byte_offset, at_us, codec, key_id, raw_bytes, body
FROM response_chunks WHERE request = :id AND seq > :after ORDER BY seq LIMIT :limit
""",
            {"id": id_, "after": after, "limit": _PIECES},
        )
        yield from found
        if len(found) < _PIECES:
            return
        after = found[-1]["seq"]


# --- Sums -----------------------------------------------------------------------------------------


def sums(reader: Reader, filters: Filters, by: str | None, limit: int) -> list[Row]:
    """Calls and money by group, the dearest first; one row for all when `by` is None.

    `by` is one of `GROUPS`, `day`, or `label:NAME`. The hit rate is the share of calls served from
    another's answer among those that have a key, or were adopted. Percentiles are nearest ranks,
    of calls that were made (not served from another's answer) and ended well. Money is of what is
    known; `unpriced` are the calls of which some is not, as they answered, as they broke, or since
    nobody saw their end.

    Raises:
        KeyError: for another `by`.
    """
    where, parameters = filters.where(reader)
    group, more = _group(reader, by)
    query = f"""
SELECT grouped AS {"day" if by == "day" else "value"},
    COUNT(*) AS calls,
    SUM(CASE WHEN outcome <> 'ok' THEN 1 ELSE 0 END) AS not_ok,
    SUM(CASE WHEN idem_key IS NOT NULL THEN 1 ELSE 0 END) AS keyed,
    SUM(CASE WHEN idem_role IS NOT NULL THEN 1 ELSE 0 END) AS eligible,
    SUM(served) AS duplicates,
    COALESCE(SUM(cost_nusd), 0) AS cost,
    COALESCE(SUM(wasted_nusd), 0) AS wasted,
    COALESCE(SUM(avoided_nusd), 0) AS avoided,
    SUM(CASE WHEN unknown THEN 1 ELSE 0 END) AS unpriced,
    MIN(CASE WHEN good = 1 AND place * 100 >= 50 * places THEN duration_us END) AS p50_us,
    MIN(CASE WHEN good = 1 AND place * 100 >= 95 * places THEN duration_us END) AS p95_us
FROM (
    SELECT *,
        ROW_NUMBER() OVER (PARTITION BY grouped, good ORDER BY duration_us) AS place,
        COUNT(*) OVER (PARTITION BY grouped, good) AS places
    FROM (
        SELECT {group} AS grouped, r.outcome, r.idem_key, r.idem_role, r.duration_us, r.cost_nusd,
            {_WASTED} AS wasted_nusd, r.avoided_nusd, {_UNKNOWN} AS unknown,
            CASE WHEN {_SERVED} THEN 1 ELSE 0 END AS served,
            CASE WHEN r.outcome = 'ok' AND r.duration_us IS NOT NULL AND NOT ({_SERVED})
                THEN 1 ELSE 0 END AS good
        {_CALLS} WHERE {where}
    ) AS chosen
) AS ranked
GROUP BY grouped
ORDER BY {"grouped DESC" if by == "day" else "SUM(COALESCE(cost_nusd, 0)) DESC, COUNT(*) DESC"}
LIMIT :limit
"""
    found = reader.rows(query, parameters | more | {"limit": limit})
    return [_sum(row, by) for row in found]


#: Of a call that broke, only its attempts tell: it cost nothing, and wasted nobody knows how much.
#: Of one that was sent and whose end nobody saw, nothing does, unless a process that was only late
#: told of its attempts. A duplicate has no cost of its own, but an adopted one is the call itself.
_UNKNOWN: Final = f"""(COALESCE(r.cost_source, '') = 'unknown'
                OR (r.wasted_nusd IS NULL AND COALESCE(r.attempts, 1) > 0 AND EXISTS (
                    SELECT 1 FROM attempts AS a
                    WHERE a.request = r.id AND a.cost_source = 'unknown'))
                OR (r.sent_us IS NOT NULL AND r.outcome IS NULL AND r.model_requested IS NOT NULL
                    AND (r.idem_live IS NULL OR r.idem_state <> 'sent' OR {_LAPSED})
                    AND NOT EXISTS (SELECT 1 FROM attempts AS a WHERE a.request = r.id)))"""

_SERVED: Final = "COALESCE(r.idem_role, 'owner') IN ('joined', 'replayed', 'adopted')"


def _group(reader: Reader, by: str | None) -> tuple[str, Row]:
    if by is None:
        return "'all'", {}
    if by == "day":
        return reader.day("r.started_us"), {}
    kind, _, label = by.partition(":")
    if kind == "label" and label:
        return reader.label("label"), {"label": reader.label_name(label)}
    if by not in GROUPS:
        raise KeyError(by)
    return COLUMNS[by], {}


def _sum(row: Row, by: str | None) -> Row:
    """A row of sums in dollars and milliseconds."""

    def usd(*names: str) -> float:
        return sum(int(row[name]) for name in names) / NANO_USD

    served, eligible = int(row["duplicates"]), int(row["eligible"])
    named: Row = {} if by is None else {by: row["day" if by == "day" else "value"]}
    return named | {
        "calls": int(row["calls"]),
        "not_ok": int(row["not_ok"]),
        "keyed": int(row["keyed"]),
        "duplicates": served,
        "hit_rate": served / eligible if eligible else None,
        "cost_usd": usd("cost"),
        "wasted_usd": usd("wasted"),
        "spent_usd": usd("cost", "wasted"),
        "avoided_usd": usd("avoided"),
        "unpriced": int(row["unpriced"]),
        "p50_ms": _ms(row["p50_us"]),
        "p95_ms": _ms(row["p95_us"]),
    }


def _ms(us: Any) -> float | None:
    return None if us is None else int(us) / 1000.0


# --- What a purge would remove --------------------------------------------------------------------


def removable(reader: Reader, before_us: int) -> Row:
    """How many rows and stored bytes `purge` would remove now, and how many keys it would free:
    what `Purged` tells when it is done."""
    query = f"""
SELECT
    (SELECT COUNT(*) {_CALLS} WHERE {_OLD}) AS requests,
    (SELECT COUNT(*) FROM attempts AS a
        WHERE EXISTS (SELECT 1 {_CALLS} WHERE r.id = a.request AND {_OLD})
            OR (a.started_us < :before
                AND NOT EXISTS (SELECT 1 FROM requests WHERE id = a.request))) AS attempts,
    (SELECT COUNT(*) FROM breaker_events WHERE at_us < :before) AS events,
    (SELECT COUNT(*) {_CALLS} WHERE {_EXPIRED}) AS keys,
    (SELECT COUNT(*) {_GOING}) AS chunks,
    (SELECT COALESCE(SUM(c.raw_bytes), 0) {_GOING}) AS stored_bytes
"""
    found = reader.row(query, {"before": before_us, "now": reader.now_us()})
    assert found is not None  # noqa: S101 - a query without FROM
    return {name: int(value) for name, value in found.items()}


_EXPIRED: Final = (
    "(r.idem_live = 1 AND r.expires_us <= :now "
    f"AND NOT (r.idem_state IN ('claimed', 'sent') AND NOT ({_LAPSED})))"
)
_OLD: Final = (
    f"(r.idem_live IS NULL OR {_EXPIRED}) AND r.started_us < :before "
    "AND (r.ended_us IS NULL OR r.ended_us < :before)"
)
_GOING: Final = f"""FROM response_chunks AS c
    WHERE EXISTS (SELECT 1 {_CALLS} WHERE r.id = c.request AND ({_EXPIRED} OR {_OLD}))"""
