"""`python -m bench`: what a call through Steer costs, beside a bare aiohttp pass-through; and what
the ledger costs, beside none; and what a run of the in-process API costs."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import Any, Final

from bench import ledger, sdk
from bench.measure import FULL, QUICK, measure
from bench.report import figures, machine, show


def main() -> int:
    """Parse the options, measure, report; 1 when a target was missed and that was asked about."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 1 minute instead of 5")
    parser.add_argument(
        "--part", choices=("calls", "ledger", "sdk", "all"), default="all", help="what is measured"
    )
    parser.add_argument("--json", action="store_true", help="print figures and samples as JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        print(
            "bench: processor time and memory are read from /proc, so this needs Linux",
            file=sys.stderr,
        )
        return 2
    # Servers are stopped on the way out, and inherit the limit: two sockets per stream.
    signal.signal(signal.SIGTERM, _stop)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    parts = tuple(_PARTS) if options.part == "all" else (options.part,)
    try:
        runs = {part: _PARTS[part](options.quick) for part in parts}
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        _say("")
    lines = {part: _FIGURES[part](run) for part, run in runs.items()}
    if options.json:
        document = {
            "machine": machine(),
            "figures": {
                part: [asdict(line) | {"met": line.met} for line in found]
                for part, found in lines.items()
            },
            "samples": {part: asdict(run) for part, run in runs.items()},
        }
        print(json.dumps(document, indent=1))
    else:
        for part, found in lines.items():
            _SHOWS[part](found)
    missed = any(line.met is False for found in lines.values() for line in found)
    return int(options.strict and missed)


_PARTS: Final[dict[str, Callable[[bool], Any]]] = {
    "calls": lambda quick: measure(QUICK if quick else FULL, _say),
    "ledger": lambda quick: ledger.measure(ledger.QUICK if quick else ledger.FULL, _say),
    "sdk": lambda quick: sdk.measure(1_000 if quick else 10_000, _say),
}
_FIGURES: Final[dict[str, Callable[[Any], list[Any]]]] = {
    "calls": figures,
    "ledger": ledger.figures,
    "sdk": sdk.figures,
}
_SHOWS: Final[dict[str, Callable[[Any], None]]] = {
    "calls": show,
    "ledger": ledger.show,
    "sdk": sdk.show,
}


def _stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


def _say(what: str) -> None:
    """Say on a terminal what is under way, in one line that the next one overwrites."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
