"""`steer db`: the schema of the ledger's database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from steer_proxy.cli.common import FAILED, ConfigOption, DatabaseUrlOption, source_of, told

if TYPE_CHECKING:
    from steer_proxy.ledger.address import Address
    from steer_proxy.ledger.schema import State

app = typer.Typer(
    help="Bring the schema of the ledger's database up to date, or show where it stands.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("upgrade")
def upgrade(config: ConfigOption = None, database_url: DatabaseUrlOption = None) -> None:
    """Bring the schema up to date: in one transaction, and one at a time.

    PostgreSQL needs it before `steer serve` of a new version; SQLite files are upgraded by `steer
    serve` itself.
    """
    from steer_proxy.ledger import migrate
    from steer_proxy.ledger.address import Memory, parse_address

    with _database(config, database_url) as url:
        place = parse_address(url)
        if isinstance(place, Memory):
            typer.echo("The ledger is in memory: there is nothing to upgrade.")
            return
        before = migrate.current(url)
        migrate.upgrade(url)
        after = migrate.current(url)
        if after == before:
            typer.echo(f"{place} is at revision {after.revision} already.")
        else:
            came = before.revision or "nothing"
            typer.echo(f"{place} was at {came}, is now at revision {after.revision}.")


@app.command("current")
def current(config: ConfigOption = None, database_url: DatabaseUrlOption = None) -> None:
    """Show where the schema stands; exit with 1 when this version cannot use it as it is."""
    from steer_proxy.ledger import migrate
    from steer_proxy.ledger.address import Memory, parse_address

    with _database(config, database_url) as url:
        place = parse_address(url)
        if isinstance(place, Memory):
            typer.echo("The ledger is in memory: it has no schema.")
            return
        state = migrate.current(url)
        typer.echo(f"{place} {_standing(place, state)}.")
        migrate.check(state)


def _standing(place: Address, state: State) -> str:
    """Where a schema stands, in words."""
    from steer_proxy.ledger.address import Sqlite

    if state.revision is not None:
        since = f"for writers from {state.min_writer} on"
        return f"is at revision {state.revision} ({state.standing}), {since}"
    if state.foreign:
        return f"holds tables that are not Steer's: {', '.join(state.foreign)}"
    if isinstance(place, Sqlite) and not Path(place.path).exists():
        return "does not exist"
    return "has no ledger"


@contextmanager
def _database(config: Path | None, database_url: str | None) -> Iterator[str]:
    """The ledger's URL; a database that cannot be used is told in one line, with exit code 1."""
    from steer_proxy.engine.secret import SecretUnavailable
    from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable

    with told():
        url = source_of(config, database_url=database_url).database().url
    try:
        yield url if isinstance(url, str) else url.read()
    except SecretUnavailable as error:
        raise _failed(f"database.url: {error}") from None
    except (LedgerUnusable, LedgerUnavailable) as error:
        raise _failed(str(error)) from None


def _failed(message: str) -> typer.Exit:
    typer.echo(f"steer: {message}", err=True)
    return typer.Exit(FAILED)
