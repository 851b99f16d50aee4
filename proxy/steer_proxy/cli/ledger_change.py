"""`steer ledger purge` and `resolve`: the two that write, also beside a running sidecar."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from steer_proxy.cli.common import ConfigOption, DatabaseUrlOption, fail, source_of, told
from steer_proxy.cli.ledger_options import answering, failed, moment, one_of
from steer_proxy.cli.ledger_show import SERVED, one

if TYPE_CHECKING:
    from steer_policies.idempotency import Move
    from steer_proxy.ledger.address import Address
    from steer_proxy.ledger.protocol import Ledger
    from steer_proxy.ledger.reading import Row
    from steer_proxy.ledger.values import BreakerEventRow

#: What a purge counts.
_KINDS: Final = ("requests", "attempts", "events", "keys", "chunks", "stored_bytes")

#: How a shell tells that Ctrl-C ended a command.
_INTERRUPTED: Final = 130


def purge(
    before: Annotated[
        str | None,
        typer.Option(
            "--before",
            metavar="TIME",
            help="Remove calls that ended before then: 30d ago, or 2026-01-31 (UTC).",
            show_default=False,
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            "--keys",
            metavar="expired",
            help="Free expired keys and remove their answers (which --before does, too).",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[  # noqa: FBT002 - options, given by name
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,  # noqa: FBT002
    config: ConfigOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """Remove what is over, in small slices: never the row of a key that is in use.

    A running sidecar does this by itself (`ledger.retention`) and need not be stopped for it.
    """
    from steer_proxy.ledger.reading import reading
    from steer_proxy.ledger.reports import removable

    if before is None and keys is None:
        raise fail("say what to remove: --before TIME, or --keys expired")
    if keys is not None:
        one_of(keys, ("expired",), "--keys")
    before_us = moment(before, time.time(), "--before") or 0
    interrupted = False
    with told():
        address = source_of(config, database_url=database_url).database().address()
    with answering():
        with reading(address) as reader:  # also to say best what is wrong with the place
            found = removable(reader, before_us) if dry_run else {}
        if not dry_run:
            found = dict.fromkeys(_KINDS, 0)
            try:
                asyncio.run(_purge(address, before_us, found))
            except KeyboardInterrupt:
                interrupted = True
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _tell(found, dry_run=dry_run)
    if interrupted:
        typer.echo("steer: interrupted, there may be more to remove", err=True)
        raise typer.Exit(_INTERRUPTED)


def _tell(found: dict[str, int], *, dry_run: bool) -> None:
    """What was removed, or would be, in one line."""
    removed, freed = ("Would remove", "would free") if dry_run else ("Removed", "freed")
    told_as = (
        "{requests} calls, {attempts} attempts, {events} events, {chunks} pieces of answers "
        "({stored_bytes} bytes)"
    )
    typer.echo(f"{removed} {told_as.format_map(found)}; {freed} {found['keys']} expired keys.")


def resolve(
    name: Annotated[str, typer.Argument(metavar="KEY|ID", help="Which key, or which call's.")],
    rerun: Annotated[  # noqa: FBT002
        bool, typer.Option("--rerun", help="Free the key: its next call is made again.")
    ] = False,
    discard: Annotated[  # noqa: FBT002
        bool,
        typer.Option("--discard", help="The call counts as made, its answer as lost."),
    ] = False,
    config: ConfigOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """Settle a key whose call may have been executed and whose answer was lost.

    Look at the provider first: --rerun pays again if the call was executed after all. A running
    sidecar need not be stopped.
    """
    from steer_policies.idempotency import Move

    if rerun == discard:
        raise fail(
            "say how: --rerun (its next call is made again) or --discard (it counts as made)"
        )
    with told():
        address = source_of(config, database_url=database_url).database().address()
    with answering():
        call, may_live = _look(address, name)
        if may_live:
            _let_renew()
            call, _ = _look(address, name)
        move = Move.REOPEN if rerun else Move.SETTLE
        _check(call, move)
        event = _event(call, move)
        if not asyncio.run(_settled(address, call["id"], move, event)):
            raise failed(f"the key of call {call['id']} has changed meanwhile; look again")
    outcome = (
        "released: the next call with it is made"
        if rerun
        else "completed without an answer: a duplicate is refused (409), never made"
    )
    typer.echo(f"key {call['idem_key']!r} (call {call['id']}): {call['state']} -> {outcome}.")


def _look(address: Address, name: str) -> tuple[Row, bool]:
    """The call whose key is meant; and whether its lease may be over although its process lives: it
    is the last that had one, and a process writes the file. Then the clock has been set, say."""
    from steer_proxy.ledger.address import Sqlite
    from steer_proxy.ledger.reading import reading
    from steer_proxy.ledger.reports import named
    from steer_proxy.ledger.sqlite_locks import has_writer

    with reading(address) as reader:
        call = one(named(reader, name), name)
        if call["idem_role"] in SERVED and call["served_from"] is not None:
            call = one(named(reader, call["served_from"]), name)
        lapsed = call["idem_state"] in ("claimed", "sent") and call["state"] != call["idem_state"]
        if not (lapsed and isinstance(address, Sqlite)):
            return call, False
        last = reader.row("SELECT id FROM owners ORDER BY lease_until_us DESC LIMIT 1", {})
    of_the_last = last is not None and last["id"] == call["owner_id"]
    return call, of_the_last and has_writer(Path(address.path))


def _let_renew() -> None:
    """Wait for as long as a process that lives takes to renew its lease."""
    from steer_proxy.engine.lease import AGAIN, RENEW

    typer.echo("steer: its process may be there, looking again in a moment", err=True)
    time.sleep(RENEW + AGAIN)


def _event(call: Row, move: Move) -> BreakerEventRow:
    """What is told of it: who settled the key of a call, when and how."""
    from steer_policies.idempotency import Move, State
    from steer_proxy.engine.clock import new_id
    from steer_proxy.ledger.values import MICROSECONDS, BreakerEventRow

    now = time.time()
    rerun = move is Move.REOPEN
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = f"uid {os.getuid()}"
    return BreakerEventRow(
        id=new_id(now),
        at_us=int(now * MICROSECONDS),
        kind="manual",
        upstream=call["upstream"],
        from_state=call["state"],
        to_state=(State.RELEASED if rerun else State.COMPLETED).value,
        reason=f"steer ledger resolve {'--rerun' if rerun else '--discard'}",
        request=call["id"],
        actor=f"{user}@{socket.gethostname()}".encode("utf-8", "replace").decode(),
    )


def _check(call: Row, move: Move) -> None:
    """Make sure that there is something to settle."""
    from steer_policies.idempotency import Move

    who = f"the key of call {call['id']}"
    state = call["state"] if call["idem_live"] else None
    if call["idem_scope"] is None:
        raise failed(f"call {call['id']} has no key")
    if state == "abandoned" and move is Move.SETTLE:
        raise failed(f"{who} was claimed and nothing was sent: use --rerun, or just call again")
    if state in ("uncertain", "abandoned"):
        return
    if state in ("claimed", "sent"):
        owner = call["owner_instance"] or call["owner_id"]
        raise failed(f"{who} is in use: its call is running at {owner}, there is nothing to settle")
    if state == "completed":
        raise failed(f"{who} is completed: there is nothing to settle")
    raise failed(f"{who} is free already: its next call is made")


@asynccontextmanager
async def _writing(address: Address) -> AsyncIterator[Ledger]:
    """The ledger, to be written beside whoever else writes it."""
    from steer_proxy.ledger.address import Postgres, Sqlite

    ledger: Ledger
    if isinstance(address, Sqlite):
        from steer_proxy.ledger.sqlite import SqliteLedger

        ledger = SqliteLedger(Path(address.path), time.time, guest=True)
    else:
        from steer_proxy.ledger.postgres import PostgresLedger

        assert isinstance(address, Postgres)  # noqa: S101 - what can be read and is no file
        ledger = PostgresLedger(address)
    try:
        await ledger.open()
        yield ledger
    finally:
        await ledger.close()


async def _settled(address: Address, id_: str, move: Move, event: BreakerEventRow) -> bool:
    from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
    from steer_proxy.ledger.values import Batch

    async with _writing(address) as ledger:
        if not await ledger.settle(id_, move):
            return False
        try:
            await ledger.write(Batch(events=[event]))
        except (LedgerUnavailable, LedgerUnusable) as error:
            # The key is settled all the same, and must not look as if it were not.
            typer.echo(f"steer: who settled the key could not be written down: {error}", err=True)
        return True


async def _purge(address: Address, before_us: int, total: dict[str, int]) -> None:
    """Remove slice after slice; `total` is how many rows went so far, as a dry run tells them."""
    from steer_proxy.engine.purging import Pace
    from steer_proxy.ledger.values import Purge

    async with _writing(address) as ledger:
        pace = Pace(ledger.shared)
        while True:
            removed = await ledger.purge(Purge(before_us, limit=pace.limit))
            for name in total:
                total[name] += getattr(removed, name)
            if not removed.more:
                return
            await asyncio.sleep(pace.rest(removed.busy, behind=True))  # somebody waits for it
