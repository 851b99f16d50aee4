"""Every coroutine test runs in its own loop, in debug mode, and must leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.postgres import (  # noqa: F401 - fixtures
    postgres_empty_url,
    postgres_server,
    postgres_url,
)
from tests.support.short_stacks import short_stacks
from tests.support.virtual_time import VirtualTimeLoop

# Deadlines measure the machine, not the code; derandomised, a red test stays red.
settings.register_profile("steer", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("steer")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker by which a test asks for real time."""
    config.addinivalue_line(
        "markers",
        "real_time: runs on the real clock, since a party of the test lives outside its loop",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in a loop of its own and check that it leaves nothing behind."""
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    real = pyfuncitem.get_closest_marker("real_time") is not None
    run(lambda: function(**arguments), real_time=real)
    return True


def pytest_unconfigure() -> None:
    """Let the interpreter take down what `run` has hidden from it: extension modules complain of
    what outlives them."""
    gc.unfreeze()


def run(main: Callable[[], Awaitable[None]], *, real_time: bool = False) -> None:
    """Run a coroutine function to its end; fail for tasks, descriptors or errors left behind."""
    # What is there already cannot be this test's litter; collecting it again takes 0.1 s each time.
    gc.freeze()
    before = _sockets()
    problems: list[str] = []
    factory = asyncio.SelectorEventLoop if real_time else VirtualTimeLoop
    with (
        short_stacks(run.__code__),
        asyncio.Runner(debug=True, loop_factory=factory) as runner,
    ):
        loop = runner.get_loop()
        # In debug mode asyncio reports slow callbacks; a busy test machine is not a defect.
        loop.slow_callback_duration = 30.0
        loop.set_exception_handler(
            lambda _, context: problems.append(
                f"{context['message']}: {context.get('exception')!r}"
            )
        )

        async def whole() -> None:
            await main()
            # Let transports that were closed finish closing.
            for _ in range(5):
                await asyncio.sleep(0)
            current = asyncio.current_task()
            left = [task for task in asyncio.all_tasks() if task is not current]
            problems.extend(f"task left behind: {task!r}" for task in left)

        runner.run(whole())
    gc.collect()
    problems.extend(f"socket left behind: {name}" for name in sorted(_sockets() - before))
    assert not problems, "\n".join(problems)


def _sockets() -> set[str]:
    """The process's open sockets, by their inode."""
    found: set[str] = set()
    folder = Path("/proc/self/fd")
    if sys.platform != "linux" or not folder.exists():
        return found
    for entry in folder.iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@pytest.fixture(autouse=True)
def _no_ambient_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not see the developer's own STEER_*, proxy or API-key settings."""
    for name in list(os.environ):
        if (
            name.startswith("STEER_")
            or name.endswith("_API_KEY")
            or name.lower().endswith("_proxy")
        ):
            monkeypatch.delenv(name)
