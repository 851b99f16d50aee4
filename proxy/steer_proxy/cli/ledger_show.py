"""`steer ledger show`: one call with its attempts, its key, who settled that, its duplicates, its
answer; and the calls that were made for the key before."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from steer_proxy.cli.common import (
    MISUSED,
    ConfigOption,
    DatabaseUrlOption,
    source_of,
    told,
)
from steer_proxy.cli.ledger_options import answering, failed

if TYPE_CHECKING:
    from steer_proxy.ledger.reading import Reader, Row
    from steer_proxy.ledger.sealing import Sealer

#: How duplicates were served: from another call's answer.
SERVED: Final = frozenset({"joined", "replayed", "adopted"})

_KEY: Final = (
    "idem_key",
    "state",
    "idem_state",
    "idem_role",
    "idem_epoch",
    "idem_live",
    "sent_at",
    "expires_at",
    "owner_id",
    "owner_instance",
    "served_from",
    "idem_scope",
    "idem_fp",
)
_ANSWER: Final = ("resp_bytes", "resp_chunks", "resp_sha256", "keyring_id")
#: Told in other words by another column, or not for reading.
_ELSEWHERE: Final = frozenset(
    {
        *_KEY,
        *_ANSWER,
        "started_us",
        "ended_us",
        "sent_us",
        "expires_us",
        "duration_us",
        "wait_us",
        "first_token_us",
        "cost_nusd",
        "wasted_nusd",
        "avoided_nusd",
        "model",
    }
)
_ATTEMPT: Final = (
    "n",
    "upstream",
    "model",
    "status",
    "outcome",
    "failure_class",
    "executed",
    "wait_us",
    "wait_source",
    "duration_us",
    "cost_nusd",
    "upstream_request_id",
)
_SETTLED: Final = ("settled_at", "actor", "from_state", "to_state", "reason")
_DUPLICATE: Final = ("started_at", "id", "idem_role", "status", "outcome", "sdk_retry")
_EARLIER: Final = ("started_at", "id", "state", "idem_state", "status", "outcome", "spent_usd")


def show(
    name: Annotated[str, typer.Argument(metavar="ID|KEY|REQUEST-ID", help="Which call.")],
    body: Annotated[  # noqa: FBT002 - an option, given by name
        bool,
        typer.Option("--body", help="Write the stored answer's body instead, byte for byte."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,  # noqa: FBT002
    config: ConfigOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """Show one call: attempts, key, duplicates, earlier calls of the key, and the stored answer."""
    from steer_proxy.cli.ledger_screen import as_data
    from steer_proxy.ledger import reports
    from steer_proxy.ledger.reading import reading

    with told():
        database = source_of(config, database_url=database_url).database()
    with answering(), reading(database.address()) as reader:
        call = one(reports.named(reader, name), name)
        sealer = database.sealer()
        if body:
            _write_body(reader, sealer, call)
            return
        attempts = reports.attempts(reader, call["id"])
        duplicates = reports.duplicates(reader, call["id"])
        earlier = reports.earlier(reader, call)
        settled = reports.settled(reader, call)
    head = _head(sealer, call)
    if as_json:
        told_as = {
            "call": as_data(call) | {"resp_headers": head},
            "attempts": [as_data(each) for each in attempts],
            "duplicates": [as_data(each) for each in duplicates],
            "earlier": [as_data(each) for each in earlier],
            "settled": [as_data(each) for each in settled],
        }
        typer.echo(json.dumps(told_as))
    else:
        _print(call, attempts, duplicates, earlier, settled, head)


def one(found: Sequence[Row], name: str) -> Row:
    """The call that is meant: of a key the live record, else the newest.

    Keys of different callers are different keys, and request ids are the callers' own: when several
    fit they are listed, to be named by their ids.
    """
    from steer_proxy.cli.ledger_screen import cell

    if not found:
        raise failed(f"no call has the id, the key or the request id {name[:64]!r}")
    # Neither those that were given another's answer, nor those that were refused for the key.
    owners = [row for row in found if row["idem_role"] == "owner"] or list(found)
    candidates = [row for row in owners if row["idem_live"]] or owners
    scopes = {row["idem_scope"] for row in candidates}
    if len(candidates) == 1 or (len(scopes) == 1 and None not in scopes):
        return candidates[0]
    typer.echo(f"steer: {name[:64]!r} names {len(candidates)} calls; name one by its id:", err=True)
    for row in candidates:
        told_as = [cell(each, row[each]) for each in ("id", "started_at", "route", "caller")]
        typer.echo(
            "  " + "  ".join([*told_as, cell("state", row["state"] or row["outcome"])]), err=True
        )
    raise typer.Exit(MISUSED)


def _head(sealer: Sealer, call: Row) -> Any:
    """The stored answer's head, or why it cannot be read; None when there is none."""
    from steer_proxy.ledger.sealing import Unreadable

    if call["resp_headers"] is None:
        return None
    try:
        return json.loads(sealer.open_head(call["id"], call["resp_headers"], call["keyring_id"]))
    except Unreadable as error:
        return {"unreadable": str(error)}
    except ValueError:
        return {"unreadable": "the answer's head is damaged"}


def _print(
    call: Row,
    attempts: Sequence[Row],
    duplicates: Sequence[Row],
    earlier: Sequence[Row],
    settled: Sequence[Row],
    head: Any,
) -> None:
    from steer_proxy.cli.ledger_screen import print_fields, print_table

    # An attempt that the row itself tells of stands below with the others.
    own = [name for name in call if not name.startswith("attempt_")]
    print_fields(
        f"call {call['id']}", call, [name for name in own if name not in _ELSEWHERE | _ASIDE]
    )
    if call["idem_key"] is not None or call["idem_role"] is not None:
        print_fields("\nkey", call, _KEY)
    if settled:
        typer.echo("\nsettled by hand")
        print_table(settled, _SETTLED)
    if attempts:
        typer.echo("\nattempts")
        print_table(attempts, _ATTEMPT)
    if duplicates:
        typer.echo("\nduplicates")
        print_table(duplicates, _DUPLICATE)
    if earlier:
        typer.echo("\nearlier calls of the key")
        print_table(earlier, _EARLIER)
    print_fields("\nstored answer", call, _ANSWER)
    for line in _head_lines(head):
        typer.echo(f"  {line}")


_ASIDE: Final = frozenset({"id", "resp_headers", "owner_instance", "lease_until_us"})


def _head_lines(head: Any) -> list[str]:
    from steer_proxy.cli.ledger_screen import cell

    if not isinstance(head, Mapping):
        return []
    if "unreadable" in head:
        return [f"its headers cannot be read: {head['unreadable']}"]
    fields = head.get("fields")
    pairs = [each for each in fields if len(each) == 2] if isinstance(fields, list) else []
    return [f"{cell('', name)}: {cell('', value)}" for name, value in pairs]


def _write_body(reader: Reader, sealer: Sealer, call: Row) -> None:
    """The stored bytes to standard output; the call's own, or those it was served from."""
    from steer_proxy.ledger import reports
    from steer_proxy.ledger.values import ChunkRow

    owner = call
    if call["served_from"] is not None:
        owner = one(reports.named(reader, call["served_from"]), call["served_from"])
    if owner["resp_chunks"] is None:
        raise failed(f"no answer is stored for {owner['id']}")
    out = sys.stdout.buffer
    digest, size, count = hashlib.sha256(), 0, 0
    for row in reports.pieces(reader, owner["id"]):
        raw = sealer.open(ChunkRow(**row), owner["keyring_id"])
        if row["seq"] != count or row["byte_offset"] != size:
            raise failed(f"a piece of the answer of {owner['id']} is missing")
        digest.update(raw)
        size, count = size + len(raw), count + 1
        out.write(raw)
    out.flush()
    if size != owner["resp_bytes"] or owner["resp_sha256"] not in (None, digest.hexdigest()):
        raise failed(f"the stored answer of {owner['id']} is not what was stored")
