"""`steer ledger`: look into the ledger, sum it up, purge it, settle uncertain keys.

Looking never writes and never waits for a running sidecar.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from steer_proxy.cli.common import ConfigOption, DatabaseUrlOption, fail, source_of, told
from steer_proxy.cli.ledger_change import purge, resolve
from steer_proxy.cli.ledger_options import (
    JsonOption,
    KeyOption,
    LabelOption,
    LimitOption,
    ModelOption,
    OutcomeOption,
    RequestIdOption,
    RouteOption,
    SinceOption,
    StateOption,
    UntilOption,
    UpstreamOption,
    answering,
    check_known,
    label_name,
    labels,
    limited,
    moment,
    one_of,
)
from steer_proxy.cli.ledger_show import show

if TYPE_CHECKING:
    from steer_proxy.ledger.reading import Reader
    from steer_proxy.ledger.reports import Filters

app = typer.Typer(
    help="Look into the ledger: calls, keys, spend.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

#: What a table shows when nothing else is asked for.
SHOWN: Final = (
    "started_at",
    "id",
    "route",
    "upstream",
    "model",
    "status",
    "outcome",
    "attempts",
    "duration_ms",
    "cost_usd",
    "idem_key",
    "idem_role",
    "state",
)


@app.command("list")
def list_(  # noqa: PLR0913, PLR0917 - a command's options
    since: SinceOption = None,
    until: UntilOption = None,
    route: RouteOption = None,
    upstream: UpstreamOption = None,
    model: ModelOption = None,
    key: KeyOption = None,
    state: StateOption = None,
    outcome: OutcomeOption = None,
    label: LabelOption = None,
    request_id: RequestIdOption = None,
    limit: LimitOption = 50,
    sort: Annotated[
        str,
        typer.Option("--sort", metavar="COLUMN", help="By a column; -COLUMN: greatest first."),
    ] = "-started_at",
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="A,B,...", help="These columns.", show_default=False),
    ] = None,
    as_json: JsonOption = False,  # noqa: FBT002 - an option, given by name
    config: ConfigOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """List calls, the newest first."""
    from steer_proxy.cli.ledger_screen import print_json, print_table
    from steer_proxy.ledger import reports

    filters = _filters(
        since,
        until,
        state,
        outcome,
        label,
        route=route,
        upstream=upstream,
        model=model,
        key=key,
        request_id=request_id,
    )
    known = tuple(reports.COLUMNS)
    chosen = known if as_json else SHOWN
    if columns is not None:
        chosen = tuple(one_of(each.strip(), known, "--columns") for each in columns.split(","))
    one_of(sort.removeprefix("-"), known, "--sort")
    with _reader(config, database_url) as reader:
        rows = reports.calls(reader, filters, chosen, sort, limited(limit))
        if not rows:
            check_known(reader, filters)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows, chosen)
        if len(rows) == limit:
            typer.echo(f"\nThe first {limit}; --limit shows more.", err=True)
    else:
        typer.echo("No calls.", err=True)


@app.command("stats")
def stats(  # noqa: PLR0913, PLR0917
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="GROUP",
            help="model, route, upstream, day, caller, label:NAME, and more.",
            show_default=False,
        ),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    route: RouteOption = None,
    upstream: UpstreamOption = None,
    model: ModelOption = None,
    key: KeyOption = None,
    state: StateOption = None,
    outcome: OutcomeOption = None,
    label: LabelOption = None,
    request_id: RequestIdOption = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,  # noqa: FBT002
    config: ConfigOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """Sum up calls: spend, waste, duplicates and what they saved, durations."""
    from steer_proxy.cli.ledger_screen import print_json, print_table
    from steer_proxy.ledger import reports

    filters = _filters(
        since,
        until,
        state,
        outcome,
        label,
        route=route,
        upstream=upstream,
        model=model,
        key=key,
        request_id=request_id,
    )
    if by is not None:
        kind, colon, name = by.partition(":")
        if kind == "label" and colon:
            label_name(name, "--by label:NAME")
        else:
            one_of(by, ("day", *reports.GROUPS, "label:NAME"), "--by")
    with _reader(config, database_url) as reader:
        rows = reports.sums(reader, filters, by, limited(limit) + 1)
        if not rows:
            check_known(reader, filters)
    shown = rows[:limit]
    if as_json:
        print_json(shown)
    elif rows:
        print_table(shown, tuple(rows[0]))
    else:
        typer.echo("No calls.", err=True)
    if len(rows) > limit:
        # With JSON too: who adds the groups up would miss some.
        typer.echo(f"\nThe first {limit} groups; --limit shows more.", err=True)


app.command("show")(show)
app.command("purge")(purge)
app.command("resolve")(resolve)


@contextmanager
def _reader(config: Path | None, database_url: str | None) -> Iterator[Reader]:
    from steer_proxy.ledger.reading import reading

    with told():
        database = source_of(config, database_url=database_url).database()
    with answering(), reading(database.address()) as reader:
        yield reader


def _filters(
    since: str | None,
    until: str | None,
    state: str | None,
    outcome: str | None,
    label: list[str] | None,
    **plain: str | None,
) -> Filters:
    """The filters' meaning; one that is no word of ours is refused with the words there are."""
    from steer_policies.outcome import Outcome
    from steer_proxy.ledger.reports import STATES, Filters

    now = time.time()
    since_us, until_us = moment(since, now, "--since"), moment(until, now, "--until")
    if since_us is not None and until_us is not None and since_us >= until_us:
        raise fail("--since: must be before --until")
    return Filters(
        since_us=since_us,
        until_us=until_us,
        outcome=outcome and one_of(outcome, [str(each) for each in Outcome], "--outcome"),
        state=state and one_of(state, STATES, "--state"),
        labels=labels(label),
        **plain,
    )
