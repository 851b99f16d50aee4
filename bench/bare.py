"""The yardstick: a pass-through with nothing but aiohttp in it.

Server and `ClientSession` are set up as one would for a proxy that wants to be fast: no cookies, no
redirects, no decompression, no access log, no time-outs, a pool without limit, bodies passed on as
they come. Everything Steer costs beyond this is Steer's own doing.

Prints `{"port": N}` on one line once it listens, and runs until it is told to stop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from typing import Final

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

_HOP_BY_HOP: Final = (
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
)


class PassThrough:
    """Sends every request to one origin and its answer back."""

    def __init__(self, session: ClientSession, origin: str) -> None:
        self._session = session
        self._origin = origin

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass one request on: its body as a whole, the answer's in chunks."""
        headers = _end_to_end(request.headers)
        headers.popall("Host", None)
        async with self._session.request(
            request.method,
            URL(self._origin + request.raw_path, encoded=True),
            headers=headers,
            data=await request.read(),
            allow_redirects=False,
        ) as answer:
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
            )
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
        return response


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    kept = headers.copy()
    for name in _HOP_BY_HOP:
        kept.popall(name, None)
    return kept


async def serve(origin: str) -> None:
    """Serve until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with ClientSession(
        connector=TCPConnector(limit=0),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    ) as session:
        server = web.Server(
            PassThrough(session, origin).handle, access_log=None, auto_decompress=False
        )
        listener = await loop.create_server(server, "127.0.0.1", 0, backlog=4096)
        print(json.dumps({"port": listener.sockets[0].getsockname()[1]}), flush=True)
        await stop.wait()
        listener.close()
        await server.shutdown(0)


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.bare", description=__doc__)
    parser.add_argument("origin", help="where requests go: http://HOST:PORT")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args().origin))


if __name__ == "__main__":
    main()
