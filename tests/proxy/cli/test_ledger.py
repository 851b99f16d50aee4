"""`steer ledger list`, `show` and `stats`, on both databases."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from steer_proxy.cli import ledger_screen
from steer_proxy.ledger import migrate, reports
from steer_proxy.ledger.address import parse_address
from steer_proxy.ledger.reading import reading
from steer_proxy.ledger.values import CallRow
from tests.proxy.cli.conftest import Steer
from tests.support.filled import (  # noqa: F401 - fixtures
    Filled,
    FilledPostgres,
    FilledSqlite,
    filled,
    filled_postgres,
    filled_sqlite,
)
from tests.support.filled import fill as fill_it
from tests.support.ledger_data import ALIVE, DEAD, FAR_OFF_US, MILLI_USD, LedgerData, OwnerRow
from tests.support.postgres import Server
from tests.support.unprivileged import unprivileged

NOWHERE = "postgresql://127.0.0.1:9/steer"

Ask = Callable[..., list[Any]]
Fill = Callable[[LedgerData], str]


def url_of(ledger: Filled) -> str:
    """The address of a made-up ledger."""
    if isinstance(ledger, FilledSqlite):
        return f"sqlite:///{ledger.path}"
    assert isinstance(ledger, FilledPostgres)
    return ledger.url


@pytest.fixture
def ask(steer: Steer, filled: Filled) -> Ask:  # noqa: F811
    """Run a command of `steer ledger` on the made-up ledger: what it prints as JSON."""

    def ask(*arguments: str) -> list[Any]:
        result = steer("ledger", *arguments, "--json", "--database-url", url_of(filled))
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    return ask


@pytest.fixture
def file_url(filled_sqlite: Filled) -> str:  # noqa: F811
    """The made-up ledger as a file."""
    return url_of(filled_sqlite)


@pytest.fixture(params=["sqlite", "postgres"])
def fill(request: pytest.FixtureRequest, tmp_path: Path) -> Fill:
    """Make a ledger of some rows, in either database; its address."""
    kind = request.param
    url = f"sqlite:///{tmp_path}/steer.db"
    url = request.getfixturevalue("postgres_url") if kind == "postgres" else url

    def filled_with(data: LedgerData) -> str:
        fill_it(url, data)
        return url

    return filled_with


# --- list


def test_a_list_is_all_there_is_to_know(ask: Ask) -> None:
    """Newest first, every column by a stable name, dates as text, labels as an object."""
    rows = ask("list")
    assert len(rows) == 39
    assert [row["started_us"] for row in rows] == sorted(
        (row["started_us"] for row in rows), reverse=True
    )
    assert set(rows[0]) == set(reports.COLUMNS)
    assert {*CallRow._fields} - set(rows[0]) == {"resp_headers"}
    (paid,) = ask("list", "--key", "order-1", "--state", "completed")
    assert paid["started_at"] == "2026-03-03T14:00:00.000Z"
    assert paid["labels"] == {"team": "search"}
    assert (paid["cost_nusd"], paid["cost_usd"], paid["avoided_usd"]) == (50_000_000, 0.05, None)
    assert (paid["duration_us"], paid["duration_ms"]) == (2_000_000, 2000.0)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ((), 39),
        (("--since", "2026-03-04"), 4),
        (("--since", "2026-03-03T14:00:00Z", "--until", "2026-03-03T16:00:03+02:00"), 3),
        (("--until", "2026-03-03"), 15),
        (("--since", "2026-03-02T10:00", "--until", "2026-03-03"), 5),
        (("--since", "2h"), 0),
        (("--since", "100000d"), 39),
        (("--route", "claude"), 5),
        (("--upstream", "azure-eu"), 2),
        (("--model", "house-model"), 4),
        (("--model", "gpt-4o"), 34),
        (("--outcome", "cancelled"), 1),
        (("--key", "order-1"), 4),
        (("--key", "no-such-key"), 0),
        (("--request-id", "req-7"), 1),
        (("--state", "completed"), 3),
        (("--state", "uncertain"), 2),
        (("--state", "abandoned"), 1),
        (("--state", "sent"), 1),
        (("--state", "claimed"), 0),
        (("--state", "released"), 1),
        (("--state", "past"), 1),
        (("--label", "team=support"), 8),
        (("--label", "team=support", "--route", "chat"), 3),
        (("--label", "team=support", "--label", "no=such"), 0),
        (("--label", "no.such $.[0]label=x"), 0),
        (("--limit", "3"), 3),
    ],
)
def test_filters(ask: Ask, arguments: tuple[str, ...], count: int) -> None:
    """Each finds its calls, the same on both databases, and all of them together."""
    assert len(ask("list", *arguments)) == count


def test_labels_are_compared_as_text(steer: Steer, fill: Fill) -> None:
    """A label may be a number or a flag: it is told, and found, as JSON writes it."""
    data = LedgerData()
    data.call(0, labels='{"n": 5, "share": 0.5, "beta": true, "old": false, "team": "5"}')
    data.call(1, labels='{"n": "5", "share": 1, "beta": "true"}')
    url = fill(data)
    for label, count in (
        *(("n=5", 2), ("n=5.0", 0), ("share=0.5", 1), ("share=1", 1), ("team=5", 1)),
        *(("beta=true", 2), ("beta=1", 0), ("old=false", 1), ("old=0", 0)),
    ):
        listed = steer("ledger", "list", "--json", "--label", label, "--database-url", url)
        assert len(listed.stdout.splitlines()) == count, label
    groups: dict[str, dict[str | None, int]] = {
        "label:n": {"5": 2},
        "label:beta": {"true": 2},
        "label:old": {"false": 1, None: 1},
    }
    for by, expected in groups.items():
        summed = steer("ledger", "stats", "--json", "--by", by, "--database-url", url)
        rows = [json.loads(line) for line in summed.stdout.splitlines()]
        assert {row[by]: row["calls"] for row in rows} == expected


def test_columns_and_order(ask: Ask) -> None:
    """Those that were asked for, in their order; what is not known goes last either way."""
    rows = ask("list", "--columns", "idem_key, cost_usd", "--sort", "-cost_nusd")
    assert list(rows[0]) == ["idem_key", "cost_usd"]
    costs = [row["cost_usd"] for row in rows]
    known = [cost for cost in costs if cost is not None]
    assert known == sorted(known, reverse=True) == costs[: len(known)]
    rows = ask("list", "--columns", "cost_usd", "--sort", "cost_usd")
    assert [row["cost_usd"] for row in rows] == [*reversed(known), *costs[len(known) :]]
    (first, *_) = ask("list", "--sort", "started_at", "--columns", "request_id")
    assert first == {"request_id": "req-1"}


def test_every_column_can_be_shown_and_sorted_by(filled: Filled) -> None:  # noqa: F811
    """On both databases."""
    with reading(parse_address(url_of(filled))) as reader:
        for column in reports.COLUMNS:
            rows = reports.calls(reader, reports.Filters(), [column], column, 5)
            assert [list(row) for row in rows] == [[column]] * 5


def test_a_table(steer: Steer, file_url: str) -> None:
    """With a heading, a line for each call, and a hint when there may be more."""
    result = steer("ledger", "list", "--key", "order-6", "--database-url", file_url)
    heading, line = result.stdout.splitlines()
    assert heading.split() == list(_shown())
    assert line.split() == [
        "2026-03-03T14:00:06.000Z",
        "00000000-0000-7000-8000-000000000029",
        *("chat", "openai", "gpt-4o", "400", "client_4xx", "1", "2000.0", "0"),
        *("order-6", "owner", "released"),
    ]
    result = steer("ledger", "list", "--limit", "2", "--database-url", file_url)
    assert (len(result.stdout.splitlines()), result.stderr) == (
        3,
        "\nThe first 2; --limit shows more.\n",
    )


def _shown() -> tuple[str, ...]:
    from steer_proxy.cli.ledger import SHOWN

    return SHOWN


def test_no_calls(steer: Steer, file_url: str) -> None:
    """Is no error, and nothing on standard output."""
    for command in ("list", "stats"):
        result = steer("ledger", command, "--key", "none", "--database-url", file_url)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No calls.\n")


def test_nothing_foreign_reaches_the_terminal() -> None:
    """A key or a path may hold what moves a cursor."""
    assert ledger_screen.cell("path", "/a\x1b[2J\nb\u202e") == "/a\\x1b[2J\\nb\\u202e"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("status", None, "-"),
        ("status", 200, "200"),
        ("cost_usd", 0.0000123, "0.000012"),
        ("cost_usd", 0.5, "0.5"),
        ("cost_usd", 10.0, "10"),
        ("cost_usd", 0.0, "0"),
        ("p50_ms", 12.345, "12.3"),
        ("hit_rate", 1 / 3, "0.333"),
        ("started_at", 1_767_225_600_123_456, "2026-01-01T00:00:00.123Z"),
        ("started_at", 10**30, str(10**30)),
        ("body", b"abc", "3 bytes"),
    ],
)
def test_cells(name: str, value: object, shown: str) -> None:
    """Values in a line."""
    assert ledger_screen.cell(name, value) == shown


# --- wrong use


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("list", "--state", "uncertian"),
            (
                "--state: unknown 'uncertian'; did you mean uncertain? there are: claimed, sent, "
                "completed, uncertain, released, abandoned, past"
            ),
        ),
        (("list", "--outcome", "good"), "--outcome: unknown 'good'; there are: ok, throttled, "),
        (
            ("list", "--columns", "id,modle"),
            "--columns: unknown 'modle'; did you mean model? there",
        ),
        (("list", "--columns", ""), "--columns: unknown ''; there are: started_at, "),
        (("list", "--sort", "id; DROP TABLE requests"), "--sort: unknown 'id; DROP TABLE"),
        (("list", "--sort", "--id"), "--sort: unknown '-id'; did you mean id?"),
        (
            ("list", "--route", "chta"),
            "--route: unknown 'chta'; did you mean chat? there are: chat,",
        ),
        (("list", "--upstream", "azure"), "--upstream: unknown 'azure'; did you mean azure-eu?"),
        (("stats", "--model", "gpt4o"), "--model: unknown 'gpt4o'; did you mean gpt-4o?"),
        (("list", "--since", "yesterday"), "--since: expected a time such as 2h, 7d, 2026-01-31"),
        (("list", "--until", "2026-13-01"), "--until: expected a time such as"),
        (("list", "--since", "1h", "--until", "2h"), "--since: must be before --until"),
        (("list", "--limit", "0"), "--limit: expected a number from 1 to 100000, got 0"),
        (("list", "--limit", "100001"), "--limit: expected a number from 1 to 100000, got 100001"),
        (("list", "--label", "team"), "--label: expected NAME=VALUE, such as team=search"),
        (("list", "--label", 'a"b=c'), "--label: expected the name of a label"),
        (("list", "--lmit", "1"), "No such option: --lmit"),
        (
            ("stats", "--by", "modl"),
            "--by: unknown 'modl'; did you mean model? there are: day, model",
        ),
        (("stats", "--by", "label:"), "--by label:NAME: expected the name of a label, got ''"),
        (("show",), "Missing argument 'ID|KEY|REQUEST-ID'"),
        (("purge",), "say what to remove: --before TIME, or --keys expired"),
        (("purge", "--keys", "all"), "--keys: unknown 'all'; there are: expired"),
        (("purge", "--before", "soon"), "--before: expected a time"),
        (("resolve", "order-2"), "say how: --rerun"),
        (("resolve", "order-2", "--rerun", "--discard"), "say how: --rerun"),
    ],
)
def test_wrong_use(steer: Steer, file_url: str, arguments: tuple[str, ...], expected: str) -> None:
    """Exit code 2, what there is instead, and nothing on standard output."""
    result = steer("ledger", *arguments, "--database-url", file_url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


def test_a_route_without_calls_yet(steer: Steer, tmp_path: Path) -> None:
    """Nothing is known of routes by an empty ledger."""
    migrate.upgrade(f"sqlite:///{tmp_path}/steer.db")
    result = steer(
        "ledger", "list", "--route", "chat", STEER_DATABASE__URL=f"sqlite:///{tmp_path}/steer.db"
    )
    assert (result.exit_code, result.stderr) == (0, "No calls.\n")


def test_there_is_no_ledger(steer: Steer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, and what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.db").write_text("hello " * 100)
    (tmp_path / "empty.db").touch()
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE other (x)")
    for url, expected in (
        ("memory:", "a ledger in memory belongs to its process"),
        (
            "sqlite:///steer.db",
            f"there is no SQLite file steer.db (the working directory is {tmp_path}",
        ),
        ("sqlite:///empty.db", "has no ledger yet: start `steer serve` on it once"),
        ("sqlite:///other.db", "has other already, not made by Steer"),
        ("sqlite:///text.db", "file is not a database"),
        (NOWHERE, "PostgreSQL 127.0.0.1:9/steer cannot be reached"),
    ):
        for command in (
            ("list",),
            ("show", "x"),
            ("purge", "--before", "1d"),
            ("resolve", "x", "--rerun"),
        ):
            result = steer("ledger", *command, STEER_DATABASE__URL=url)
            assert (result.exit_code, result.stdout) == (1, "")
            assert expected in result.stderr
    assert not (tmp_path / "steer.db").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs threads to follow seteuid")
def test_a_directory_that_one_may_not_enter(steer: Steer) -> None:
    """One line and exit code 1, from whichever command."""
    with unprivileged() as folder:
        (folder / "steer.db").touch()
        folder.chmod(0o000)
        for command in (
            ("ledger", "list"),
            ("ledger", "show", "x"),
            ("ledger", "purge", "--before", "1d"),
            ("ledger", "resolve", "x", "--rerun"),
            ("db", "current"),
            ("db", "upgrade"),
        ):
            result = steer(*command, STEER_DATABASE__URL=f"sqlite:///{folder}/steer.db")
            assert (result.exit_code, result.stdout) == (1, "")
            (line,) = result.stderr.splitlines()
            assert line.startswith(f"steer: SQLite file {folder}/steer.db cannot be reached: Perm")


@pytest.mark.real_time
def test_there_is_no_schema(steer: Steer, postgres_empty_url: str) -> None:
    """With the command that makes it."""
    result = steer("ledger", "list", "--database-url", postgres_empty_url)
    assert result.exit_code == 1
    assert "has no ledger yet: run `steer db upgrade`" in result.stderr


@pytest.mark.real_time
def test_a_role_that_may_only_read(
    steer: Steer,
    postgres_server: Server,
    filled_postgres: Filled,  # noqa: F811
) -> None:
    """With the rights that the documentation grants it: neither the secret nor answers."""
    database = url_of(filled_postgres).rpartition("/")[2]
    postgres_server.sql("CREATE ROLE reader LOGIN")
    postgres_server.sql(
        "GRANT SELECT ON requests, attempts, v_attempts, breaker_events, owners TO reader", database
    )
    url = postgres_server.url(database, "reader")
    for command in (("list",), ("stats", "--by", "label:team"), ("show", "order-1")):
        assert steer("ledger", *command, "--database-url", url).exit_code == 0
    may_not_read = "its role may not read that (permission denied for table {}): see Connecting"
    may_not_write = (
        "the database: its role may not write it (permission denied for table alembic_version): "
        "use one that may SELECT, INSERT, UPDATE and DELETE in all of its tables"
    )
    for command, told in (
        (("show", "order-1", "--body"), may_not_read.format("response_chunks")),
        (("resolve", "order-2", "--rerun"), may_not_write),
        (("purge", "--before", "1d"), may_not_write),
    ):
        result = steer("ledger", *command, "--database-url", url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert told in result.stderr
    postgres_server.sql("GRANT SELECT ON steer_meta, alembic_version TO reader", database)
    result = steer("ledger", "purge", "--before", "1d", "--database-url", url)
    assert (result.exit_code, "may not write it (DELETE on attempts, " in result.stderr) == (
        1,
        True,
    )
    postgres_server.sql("REVOKE ALL ON requests FROM reader", database)
    result = steer("ledger", "list", "--database-url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert may_not_read.format("requests") in result.stderr
    postgres_server.sql("DROP OWNED BY reader", database)
    postgres_server.sql("DROP ROLE reader")


def test_only_the_database_of_a_configuration_matters(
    steer: Steer, file_url: str, tmp_path: Path
) -> None:
    """Who looks into the ledger need not have the upstreams' secrets."""
    path = tmp_path / "steer.yaml"
    path.write_text(
        f"database: {{url: '{file_url}'}}\n"
        "upstreams: {openai: {credential: {env: NOWHERE}}}\n"
    )
    assert steer("ledger", "stats", "--config", str(path)).exit_code == 0
    assert steer("ledger", "stats", STEER_CONFIG=str(path), STEER_LISTEN__PROT="1").exit_code == 0
    assert steer("check", str(path)).exit_code == 2
    for text, expected in (
        ("database: {url: x}", f"{path}:1: database.url: expected sqlite:///PATH"),
        ("database: {ulr: x}", "database.ulr: unknown key; did you mean url?"),
        (
            "database: {encryption: {keys: [{id: a, secret: {env: NOWHERE}}]}}",
            "environment variable NOWHERE is not set",
        ),
    ):
        path.write_text(text)
        result = steer("ledger", "stats", "--config", str(path))
        assert result.exit_code == 2
        assert expected in result.stderr


# --- stats


def test_sums(ask: Ask) -> None:
    """Of everything: 7 x 50 m$ and the like, as they are told where the ledger is made up."""
    (row,) = ask("stats")
    assert {name: round(value, 6) for name, value in row.items()} == {
        "calls": 39,
        "not_ok": 4,
        "keyed": 13,
        "duplicates": 5,
        "hit_rate": round(5 / 14, 6),
        "cost_usd": 0.334,
        "wasted_usd": 0.016,
        "spent_usd": 0.35,
        "avoided_usd": 0.19,
        "unpriced": 6,
        "p50_ms": 2000.0,
        "p95_ms": 9000.0,
    }


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("day", [("2026-03-04", 4), ("2026-03-03", 20), ("2026-03-02", 15)]),
        ("model", [("gpt-4o", 30), ("claude-sonnet", 5), ("house-model", 4)]),
        ("label:team", [("search", 30), ("support", 8), (None, 1)]),
        ("route", [("chat", 34), ("claude", 5)]),
        ("caller", [("caller-a", 30), ("caller-b", 5), ("caller-c", 4)]),
        ("instance", [("steer-1", 35), ("steer-2", 4)]),
    ],
)
def test_groups(ask: Ask, by: str, expected: list[Any]) -> None:
    """The dearest first, days from the last."""
    assert [(row[by], row["calls"]) for row in ask("stats", "--by", by)] == expected


def test_every_group(filled: Filled) -> None:  # noqa: F811
    """Together they are all."""
    with reading(parse_address(url_of(filled))) as reader:
        for by in reports.GROUPS:
            found = reports.sums(reader, reports.Filters(), by, 100)
            assert sum(row["calls"] for row in found) == 39
        with pytest.raises(KeyError):
            reports.sums(reader, reports.Filters(), "id", 100)


def test_sums_of_some(ask: Ask) -> None:
    """Filters hold for sums, too; what cannot be said is null."""
    (row,) = ask("stats", "--model", "claude-sonnet", "--by", "model")
    assert (row["calls"], row["cost_usd"], row["hit_rate"]) == (5, 0.1, None)
    (row,) = ask("stats", "--outcome", "cancelled")
    assert (row["calls"], row["p50_ms"], row["wasted_usd"]) == (1, None, 0.003)


def test_what_broke_may_have_no_price_either(steer: Steer, fill: Fill) -> None:
    """Such a call cost nothing by itself; what its attempts wasted nobody knows."""
    data = LedgerData()
    broken: dict[str, Any] = {
        "cost_source": None,
        "cost_nusd": 0,
        "outcome": "broken",
        "wasted_nusd": None,
    }
    known, unknown, tool = (data.call(0, **broken | more) for more in WASTED)
    wasted: dict[str, Any] = {"outcome": "broken", "executed": "maybe", "wasted": 1}
    data.attempt(known, **wasted, cost_nusd=MILLI_USD, cost_source="estimated")
    data.attempt(unknown, **wasted, cost_nusd=None, cost_source="unknown")
    data.attempt(tool, **wasted, model=None, cost_nusd=None, cost_source=None)
    rescued = data.call(0, wasted_nusd=None, cost_nusd=MILLI_USD, attempts=2)
    data.attempt(rescued, 1, **wasted, cost_nusd=None, cost_source="unknown")
    data.attempt(rescued, 2)
    result = steer("ledger", "stats", "--json", "--database-url", fill(data))
    assert json.loads(result.stdout)["unpriced"] == 2


WASTED: list[dict[str, Any]] = [{"wasted_nusd": MILLI_USD}, {}, {"model_requested": None}]


def test_waste_is_told_as_far_as_it_is_known(steer: Steer, fill: Fill) -> None:
    """A price that is missing takes none of the others' costs along; nor does a lost row: what was
    run again although it had been answered was paid twice."""
    data = LedgerData()
    wasted: dict[str, Any] = {"outcome": "broken", "executed": "maybe", "wasted": 1}
    half = data.call(0, wasted_nusd=None, cost_nusd=MILLI_USD, attempts=3)
    data.attempt(half, 1, **wasted, cost_nusd=2 * MILLI_USD, cost_source="estimated")
    data.attempt(half, 2, **wasted, cost_nusd=None, cost_source="unknown")
    data.attempt(half, 3)
    late = data.keyed("again", 1, **LOST, idem_state="uncertain", idem_live=None)
    data.attempt(late, 1, executed="yes", wasted=1, cost_nusd=7 * MILLI_USD)
    data.keyed("again", 2, cost_nusd=7 * MILLI_USD, idem_epoch=2)
    url = fill(data)
    (sums,) = map(json.loads, steer(*STATS, url).stdout.splitlines())
    assert (sums["wasted_usd"], sums["spent_usd"], sums["unpriced"]) == (0.009, 0.017, 1)
    listed = [*LIST, "wasted_usd,spent_usd", "--sort", "started_at", "--database-url", url]
    rows = [json.loads(line) for line in steer(*listed).stdout.splitlines()]
    assert [(row["wasted_usd"], row["spent_usd"]) for row in rows] == [
        (0.002, 0.003),
        (0.007, 0.007),
        (0, 0.007),
    ]


STATS = ("ledger", "stats", "--json", "--database-url")
LIST = ("ledger", "list", "--json", "--columns")
LOST: dict[str, Any] = {
    "status": None,
    "outcome": None,
    "attempts": None,
    "tokens_in": None,
    "cost_source": None,
    "wasted_nusd": None,
}


@pytest.mark.parametrize(
    ("columns", "unpriced"),
    [
        ({"idem_state": "sent", "owner_id": DEAD}, 1),
        ({"idem_state": "uncertain"}, 1),
        ({"idem_state": "uncertain", "idem_live": None}, 1),
        ({"idem_state": "sent", "idem_live": None}, 1),
        ({"idem_state": "completed"}, 1),
        ({"idem_state": "sent"}, 0),
        ({"idem_state": "claimed", "sent_us": None, "owner_id": DEAD}, 0),
        ({"idem_state": "sent", "owner_id": DEAD, "model_requested": None}, 0),
    ],
)
def test_a_call_whose_end_nobody_saw_has_no_price(
    steer: Steer, fill: Fill, columns: dict[str, Any], unpriced: int
) -> None:
    """It may have been billed once it was sent; one at work has its price yet to come, and nothing
    is known to be sold where no model was asked for."""
    data = LedgerData(owners=[OwnerRow(ALIVE, "steer-1", "0.1.0", 0, FAR_OFF_US)])
    data.keyed("order", 0, **(LOST | columns))
    assert json.loads(steer(*STATS, fill(data)).stdout)["unpriced"] == unpriced


def test_an_adopted_call_may_have_no_price(steer: Steer, fill: Fill) -> None:
    """It is the call itself, which its SDK had given up; other duplicates are not."""
    data = LedgerData()
    first = data.call(0, outcome="cancelled", attempts=0, cost_source=None)
    data.call(1, idem_role="adopted", served_from=first, cost_source="unknown")
    data.duplicate(data.keyed("order", 2, cost_source="unknown"), "replayed", 3, None)
    sums = json.loads(steer(*STATS, fill(data)).stdout)
    assert (sums["unpriced"], sums["duplicates"]) == (2, 2)


def test_a_table_of_sums(steer: Steer, file_url: str) -> None:
    """With the group first."""
    result = steer("ledger", "stats", "--by", "day", "--database-url", file_url)
    heading, *lines = result.stdout.splitlines()
    assert heading.split()[:3] == ["day", "calls", "not_ok"]
    assert [line.split()[0] for line in lines] == ["2026-03-04", "2026-03-03", "2026-03-02"]


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_groups_that_are_left_out_are_told(
    steer: Steer, file_url: str, more: tuple[str, ...]
) -> None:
    """Their sums are not all there is; three groups are three."""
    by_day = ("ledger", "stats", "--by", "day", *more, "--database-url", file_url, "--limit")
    assert steer(*by_day, "3").stderr == ""
    result = steer(*by_day, "2")
    assert result.stderr == "\nThe first 2 groups; --limit shows more.\n"
    assert len(result.stdout.splitlines()) == (2 if more else 3)
    assert steer("ledger", "stats", "--limit", "1", "--database-url", file_url).stderr == ""


# --- show


@pytest.mark.parametrize("name", ["order-1", "req-21", "00000000-0000-7000-8000-000000000021"])
def test_a_call_by_each_of_its_names(ask: Ask, name: str) -> None:
    """Its key, its request id, its row's id: the paid call, with all that belongs to it."""
    (found,) = ask("show", name)
    assert found["call"]["id"] == "00000000-0000-7000-8000-000000000021"
    assert found["call"]["state"] == "completed"
    assert found["call"]["owner_instance"] == "steer-1"
    assert found["call"]["resp_headers"] == {"reason": "OK"}
    assert [each["n"] for each in found["attempts"]] == [1]
    assert [each["idem_role"] for each in found["duplicates"]] == ["joined", "replayed", "replayed"]


def test_a_duplicate_by_its_own_name(ask: Ask) -> None:
    """Points to what served it."""
    (found,) = ask("show", "req-22")
    assert found["call"]["served_from"] == "00000000-0000-7000-8000-000000000021"
    assert found["attempts"] == found["duplicates"] == []


def test_a_key_with_a_history(ask: Ask) -> None:
    """Its live record, and the one whose place that took."""
    (found,) = ask("show", "order-7")
    assert (found["call"]["idem_epoch"], found["call"]["state"]) == (2, "completed")
    assert found["earlier"] == [
        {
            "started_at": "2026-03-03T14:00:07.000Z",
            "id": "00000000-0000-7000-8000-000000000030",
            "state": "past",
            "idem_state": "uncertain",
            "status": None,
            "outcome": None,
            "spent_usd": None,
        }
    ]
    (found,) = ask("show", "00000000-0000-7000-8000-000000000030")
    assert found["earlier"] == []


def test_earlier_calls_of_a_key(steer: Steer, fill: Fill) -> None:
    """After `resolve --rerun` and a retention's end; of this key of this caller, and no refused
    or served call."""
    data = LedgerData()
    over = data.keyed("k", 0, idem_live=None, cost_nusd=2 * MILLI_USD)
    settled = data.keyed(
        "k", 1, idem_live=None, idem_state="released", status=504, outcome="network",
        cost_nusd=0, wasted_nusd=5 * MILLI_USD,
    )  # fmt: skip
    data.keyed("k", 2, idem_scope="another's")
    data.call(3, idem_key="k", idem_scope="scope-k", status=409)
    data.keyed("k", 5)
    last = data.keyed("k", 6, idem_scope="another's", idem_live=None)
    data.duplicate(last, "replayed", 7, None)
    url = fill(data)
    named = "00000000-0000-7000-8000-000000000005"
    shown = steer("ledger", "show", named, "--json", "--database-url", url)
    earlier = json.loads(shown.stdout)["earlier"]
    told = ("id", "state", "idem_state", "status", "spent_usd")
    assert [tuple(row[name] for name in told) for row in earlier] == [
        (settled, "released", "released", 504, 0.005),
        (over, "past", "completed", 200, 0.002),
    ]
    lines = steer("ledger", "show", named, "--database-url", url).stdout.splitlines()
    place = lines.index("earlier calls of the key")
    assert lines[place + 1].split() == ["started_at", *told[:4], "outcome", told[4]]
    assert lines[place + 2].split()[1:] == [
        *(settled, "released", "released", "504", "network", "0.005"),
    ]


def test_a_call_for_people(steer: Steer, file_url: str) -> None:
    """In sections, without what is not known."""
    result = steer("ledger", "show", "order-1", "--database-url", file_url)
    lines = result.stdout.splitlines()
    assert lines[0] == "call 00000000-0000-7000-8000-000000000021"
    for section in ("key", "attempts", "duplicates", "stored answer"):
        assert section in lines
    assert "  model_requested  gpt-4o" in lines
    assert not any("error_class" in line for line in lines)
    plain = steer("ledger", "show", "req-1", "--database-url", file_url).stdout.splitlines()
    assert "key" not in plain


def test_no_such_call(steer: Steer, file_url: str) -> None:
    """Exit code 1."""
    result = steer("ledger", "show", "nothing", "--database-url", file_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "steer: no call has the id, the key or the request id 'nothing'\n"
