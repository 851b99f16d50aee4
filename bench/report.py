"""Figures from samples, and how they are shown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.measure import CHUNKS, HELD, INTERVAL, PACE, STREAMS, TOGETHER, Run

_MICRO: Final = 1e6
_KILO: Final = 1 / 1024
_MEGA: Final = 1 / 2**20

#: What being written down may add to what a call costs.
LOGGED: Final = 1.15

#: What a call may cost beside the bare pass-through's, which writes nothing down.
CALL: Final = 1.5 * LOGGED


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report; `target` bounds the ratio, or with `absolute` Steer's own figure."""

    what: str
    unit: str
    bare: float
    steer: float
    ratio: float | None
    target: float | None = None
    absolute: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        value = self.steer if self.absolute else self.ratio
        return value is not None and value <= self.target


def figures(run: Run) -> list[Figure]:
    """The report's lines."""
    bare, steer, direct = run.bare, run.steer, run.direct
    together = f"{TOGETHER} callers"
    return [
        _cost("CPU per JSON call, 1 caller", bare.call_alone, steer.call_alone),
        _cost(f"CPU per JSON call, {together}", bare.call_together, steer.call_together, CALL),
        _cost(f"CPU per streamed chunk, {STREAMS} streams", bare.chunk, steer.chunk, 1.3),
        *_added("1 caller", direct.latency_alone, bare.latency_alone, steer.latency_alone),
        *_added(together, direct.latency_together, bare.latency_together, steer.latency_together),
        _level("start to ready", "s", 1.0, bare.start, steer.start, 1.0),
        _level("memory, idle", "MB", _MEGA, bare.idle, steer.idle, 80.0),
        _level("memory per open stream", "KB", _KILO, bare.held, steer.held, 40.0),
    ]


def _cost(
    what: str, bare: Sequence[float], steer: Sequence[float], target: float | None = None
) -> Figure:
    """Processor time: the ratio is the median of the rounds', each being of one moment."""
    ratio = statistics.median(ours / theirs for ours, theirs in zip(steer, bare, strict=True))
    return Figure(
        what,
        "µs",
        statistics.median(bare) * _MICRO,
        statistics.median(steer) * _MICRO,
        ratio,
        target,
    )


def _added(
    load: str,
    direct: Sequence[Sequence[float]],
    bare: Sequence[Sequence[float]],
    steer: Sequence[Sequence[float]],
) -> list[Figure]:
    """Latency beyond the provider's own, in the same round: the machine is never quite the same."""
    lines = []
    for name, percent in (("median", 50), ("p99", 99)):
        theirs, ours = (
            statistics.median(
                _percentile(through, percent) - _percentile(straight, percent)
                for through, straight in zip(proxied, direct, strict=True)
            )
            * _MICRO
            for proxied in (bare, steer)
        )
        ratio = ours / theirs if min(ours, theirs) > 0 else None  # on a busy machine chance may win
        lines.append(Figure(f"added latency, {load}, {name}", "µs", theirs, ours, ratio))
    return lines


def _level(
    what: str,
    unit: str,
    scale: float,
    bare: Sequence[float],
    steer: Sequence[float],
    target: float,
) -> Figure:
    theirs, ours = statistics.median(bare) * scale, statistics.median(steer) * scale
    return Figure(what, unit, theirs, ours, ours / theirs, target, absolute=True)


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "aiohttp": metadata.version("aiohttp"),
        "uvloop": metadata.version("uvloop"),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def show(lines: Sequence[Figure]) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("bare", "Steer", "unit", "ratio", "target"):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
    table.add_column("")
    for each in lines:
        table.add_row(
            each.what,
            short(each.bare),
            short(each.steer),
            each.unit,
            "" if each.ratio is None else f"{each.ratio:.2f}x",
            _target(each),
            {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[each.met],
        )
    about = machine()
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"\nbare: a pass-through of aiohttp alone. Streams: {CHUNKS} chunks, {PACE * 1000:g} ms "
        f"apart. Latency with {TOGETHER} callers: at {TOGETHER / INTERVAL:g} calls/s. "
        f"Open streams: {HELD:,}.\n"
        f"Python {about['python']}, aiohttp {about['aiohttp']}, uvloop {about['uvloop']}, "
        f"{about['cores']} cores, {about['system']}",
        style="dim",
    )


def _target(line: Figure) -> str:
    if line.target is None:
        return ""
    return f"<= {line.target:g} {line.unit}" if line.absolute else f"<= {line.target:.3g}x"


def short(value: float) -> str:
    """A figure with three digits that matter."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"
