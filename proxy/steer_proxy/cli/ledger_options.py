"""The options of `steer ledger`, and what their texts mean."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from steer_proxy.cli.common import FAILED, fail

if TYPE_CHECKING:
    from steer_proxy.ledger.reading import Reader
    from steer_proxy.ledger.reports import Filters

#: The most rows a command prints: it holds them all.
MAX_LIMIT: Final = 100_000

_AGO: Final = re.compile(r"\d+(\.\d+)?\s*(us|ms|s|m|h|d)")

SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Calls that began then or later: 2h or 7d ago, or 2026-01-31, 2026-01-31T08:00 (UTC).",
        show_default=False,
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(
        "--until", metavar="TIME", help="Calls that began before then.", show_default=False
    ),
]
RouteOption = Annotated[
    str | None, typer.Option("--route", help="Calls of a route.", show_default=False)
]
UpstreamOption = Annotated[
    str | None, typer.Option("--upstream", help="Calls that it answered.", show_default=False)
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Calls that asked for it or got it.", show_default=False),
]
KeyOption = Annotated[
    str | None, typer.Option("--key", help="Calls with this Idempotency-Key.", show_default=False)
]
StateOption = Annotated[
    str | None,
    typer.Option(
        "--state",
        help="Keys in this state: claimed, sent, completed, uncertain, released, abandoned, past.",
        show_default=False,
    ),
]
OutcomeOption = Annotated[
    str | None,
    typer.Option("--outcome", help="Calls that ended so: ok, timeout, ...", show_default=False),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="Calls with this label; repeatable."),
]
RequestIdOption = Annotated[
    str | None,
    typer.Option("--request-id", help="Calls with this X-Request-ID.", show_default=False),
]
LimitOption = Annotated[int, typer.Option("--limit", help="How many rows at most.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


@contextmanager
def answering() -> Iterator[None]:
    """Tell why the ledger cannot be used, with the remedy, and exit with 1."""
    from steer_proxy.engine.secret import SecretUnavailable
    from steer_proxy.ledger.protocol import LedgerUnavailable, LedgerUnusable
    from steer_proxy.ledger.sealing import Unreadable

    try:
        yield
    except (LedgerUnavailable, LedgerUnusable, SecretUnavailable, Unreadable) as error:
        raise failed(str(error)) from None


def failed(message: str) -> typer.Exit:
    """Say why this did not work, and give the exit for that; raise it."""
    typer.echo(f"steer: {message}", err=True)
    return typer.Exit(FAILED)


def moment(text: str | None, now: float, option: str) -> int | None:
    """The Unix microseconds that a time means: so long before `now`, or a date in UTC."""
    from steer_policies.config import parse_duration

    if text is None:
        return None
    plain = text.strip()
    if _AGO.fullmatch(plain):
        return max(0, round((now - parse_duration(plain)) * 1_000_000))
    try:
        when = datetime.fromisoformat(plain)
        seconds = when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        raise fail(
            f"{option}: expected a time such as 2h, 7d, 2026-01-31 or 2026-01-31T08:00, "
            f"got {plain[:40]!r}"
        ) from None
    return round(seconds * 1_000_000) if math.isfinite(seconds) else None


def limited(limit: int) -> int:
    """A number of rows that can be printed."""
    if not 1 <= limit <= MAX_LIMIT:
        raise fail(f"--limit: expected a number from 1 to {MAX_LIMIT}, got {limit}")
    return limit


def labels(given: Sequence[str] | None) -> dict[str, str]:
    """Labels by name."""
    found = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise fail(f"--label: expected NAME=VALUE, such as team=search, got {each[:40]!r}")
        found[label_name(name, "--label")] = value
    return found


def label_name(name: str, option: str) -> str:
    """The name of a label, which is never empty and has no quote in it."""
    if not name or not name.isprintable() or '"' in name or len(name) > 64:
        raise fail(f"{option}: expected the name of a label, got {name[:40]!r}")
    return name


def one_of(found: str, known: Sequence[str], option: str) -> str:
    """A word that must be one of those known."""
    from difflib import get_close_matches

    if found in known:
        return found
    close = get_close_matches(found.lower(), known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    raise fail(f"{option}: unknown {found[:40]!r}{hint} there are: {', '.join(known)}")


def check_known(reader: Reader, filters: Filters) -> None:
    """Nothing was found: refuse a filter that no call has ever met, with those that there are."""
    from steer_proxy.ledger.reports import known

    for column in ("route", "upstream", "model"):
        value = getattr(filters, column)
        if value is None:
            continue
        values = known(reader, column)
        if column == "model":
            values = sorted({*values, *known(reader, "model_requested")})
        if values:
            one_of(value, sorted(values), f"--{column}")
