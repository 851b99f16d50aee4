"""The long run: `python -m tests.torture --seconds 120 --seed 7 --database postgres`.

Prints what it does, and a report. The exit code is 1 when an invariant did not hold. The sidecars'
logs stay in the folder it names when that happens.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from tests.torture.database import Database, postgresql, sqlite
from tests.torture.run import Report, torture


def _database(name: str, folder: Path) -> AbstractContextManager[Database]:
    return sqlite(folder) if name == "sqlite" else postgresql()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _run(name: str, seed: int, seconds: float) -> Report:
    folder = Path(tempfile.mkdtemp(prefix=f"steer-torture-{name}-"))
    _say(f"{name}, seed {seed}, {seconds:g} s; logs in {folder}")
    with _database(name, folder) as database:
        return asyncio.run(torture(database, seed, seconds, folder, _say))


def main() -> int:
    """Parse the options and run; 1 when an invariant did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--database", choices=("sqlite", "postgres", "both"), default="both")
    options = parser.parse_args()
    names = ("sqlite", "postgres") if options.database == "both" else (options.database,)
    reports = [_run(name, options.seed, options.seconds) for name in names]
    for report in reports:
        _say(f"\n{report}")
    return int(any(report.violations for report in reports))


if __name__ == "__main__":
    sys.exit(main())
