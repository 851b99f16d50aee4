"""`python -m bench`: what a call through Steer costs, beside a bare aiohttp pass-through."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
from dataclasses import asdict
from types import FrameType

from bench.measure import FULL, QUICK, measure
from bench.report import figures, machine, show


def main() -> int:
    """Parse the options, measure, report; 1 when a target was missed and that was asked about."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 20 s instead of 2 minutes")
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
    try:
        run = measure(QUICK if options.quick else FULL, _say)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        _say("")
    lines = figures(run)
    if options.json:
        document = {
            "machine": machine(),
            "figures": [asdict(line) | {"met": line.met} for line in lines],
            "samples": asdict(run),
        }
        print(json.dumps(document, indent=1))
    else:
        show(lines)
    return int(options.strict and any(line.met is False for line in lines))


def _stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


def _say(what: str) -> None:
    """Say on a terminal what is under way, in one line that the next one overwrites."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
