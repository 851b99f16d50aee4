"""The wall by itself, for benchmarks: `python -m tests.provider --port 0 --pace 0.01 --events 100`.

Prints `{"port": N}` on one line once it listens, and runs until it is told to stop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from contextlib import suppress

from tests.provider.server import Provider


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    provider = Provider(options.port, keep_attempts=False, pace=options.pace, tokens=options.events)
    if options.text is not None:
        provider.text = options.text
    async with provider:
        sys.stdout.write(json.dumps({"port": provider.port}) + "\n")
        sys.stdout.flush()
        await stop.wait()
        provider.errors.clear()


def main() -> None:
    """Parse the options and run, on uvloop where it is installed."""
    parser = argparse.ArgumentParser(prog="python -m tests.provider", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds before each token")
    parser.add_argument("--events", type=int, default=None, help="tokens in each answer")
    parser.add_argument("--text", default=None, help="what the model says")
    options = parser.parse_args()
    factory = None
    with suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(options))


if __name__ == "__main__":
    main()
