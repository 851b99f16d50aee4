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


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report; `target` bounds the ratio, or with `absolute` Steer's own figure."""

    what: str
    unit: str
    bare: float
    steer: float
    ratio: float
    target: float | None = None
    absolute: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return (self.steer if self.absolute else self.ratio) <= self.target


def figures(run: Run) -> list[Figure]:
    """The report's lines."""
    bare, steer = run.bare, run.steer
    paced = f"{TOGETHER} connections, {TOGETHER / INTERVAL:g} calls/s"
    return [
        _cost("CPU per JSON call, 1 connection", bare.call_alone, steer.call_alone),
        _cost(
            f"CPU per JSON call, {TOGETHER} connections",
            bare.call_together,
            steer.call_together,
            1.5,
        ),
        _cost(
            f"CPU per streamed chunk, {STREAMS} streams of {CHUNKS}, {PACE * 1000:g} ms apart",
            bare.chunk,
            steer.chunk,
            1.3,
        ),
        *_added("1 connection", run.direct.latency_alone, bare.latency_alone, steer.latency_alone),
        *_added(paced, run.direct.latency_together, bare.latency_together, steer.latency_together),
        _level("start to ready", "s", 1.0, bare.start, steer.start, 1.0),
        _level("memory, idle", "MB", _MEGA, bare.idle, steer.idle, 80.0),
        _level(f"memory per open stream, {HELD} of them", "KB", _KILO, bare.held, steer.held, 40.0),
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
    load: str, direct: Sequence[float], bare: Sequence[float], steer: Sequence[float]
) -> list[Figure]:
    """Latency beyond the provider's own."""
    lines = []
    for name, percent in (("median", 50), ("p99", 99)):
        base = _percentile(direct, percent)
        theirs = (_percentile(bare, percent) - base) * _MICRO
        ours = (_percentile(steer, percent) - base) * _MICRO
        lines.append(Figure(f"added latency, {name}, {load}", "µs", theirs, ours, ours / theirs))
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
    for line in lines:
        target = ""
        if line.target is not None:
            unit = line.unit if line.absolute else "x"
            target = f"<= {line.target:g} {unit}" if line.absolute else f"<= {line.target:g}{unit}"
        met = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[line.met]
        table.add_row(
            line.what,
            _short(line.bare),
            _short(line.steer),
            line.unit,
            f"{line.ratio:.2f}x",
            target,
            met,
        )
    about = machine()
    console = Console()
    console.print(table)
    console.print(
        f"\nPython {about['python']}, aiohttp {about['aiohttp']}, uvloop {about['uvloop']}, "
        f"{about['cores']} cores, {about['system']}",
        style="dim",
        highlight=False,
    )


def _short(value: float) -> str:
    """A figure with three digits that matter."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"
