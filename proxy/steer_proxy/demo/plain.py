"""The demo as plain lines of ASCII: for pipes, logs, tests and dumb terminals."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Final

from steer_proxy.demo.stage import Result, Scenario
from steer_proxy.demo.story import Story, Tone

#: Columns that lines are wrapped to.
WIDTH: Final = 79

_MARKS: Final = {Tone.GOOD: "+", Tone.BAD: "x", Tone.WAIT: ".", Tone.NOTE: "-", Tone.OPEN: " "}


class PlainScreen:
    """Writes each scenario when it has ended; `write` takes one line."""

    pause = 0.0
    """Seconds given to people to read a scenario that has ended."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def open(self, introduction: str) -> None:
        """Say what is about to be seen."""
        self._paragraph(introduction)

    def begin(
        self,
        scenario: Scenario,
        story: Story,  # noqa: ARG002 - it is told at its end
        number: int,
        count: int,
    ) -> None:
        """A scenario begins."""
        self._write("")
        self._write(f"[{number}/{count}] {scenario.title} ({scenario.name})")
        self._paragraph(scenario.about, "    ")

    def end(self, result: Result) -> None:
        """A scenario has ended: tell all of it."""
        for line in result.story.lines:
            self._paragraph(
                f"{line.at:5.2f} s  {line.who:<6}  {_MARKS[line.tone]} {line.text}",
                "    ",
                " " * 18,
            )
        self._paragraph(f"with Steer: {result.steered.text}", "    ")
        if result.alone.text:
            self._paragraph(f"without:    {result.alone.text}", "    ")
        self._paragraph("as promised" if result.fault is None else f"FAULT: {result.fault}", "    ")

    def close(self, results: Sequence[Result], last: str) -> None:
        """Sum up."""
        self._write("")
        self._row("what goes wrong", "without Steer", "with Steer")
        for result in results:
            wrong = "" if result.fault is None else "  FAULT"
            self._row(result.scenario.title, result.alone.brief, result.steered.brief + wrong)
        self._write("")
        self._paragraph(last)

    def _row(self, *cells: str) -> None:
        self._write(f"{cells[0]:<36}{cells[1]:<22}{cells[2]}".rstrip())

    def _paragraph(self, text: str, indent: str = "", more: str | None = None) -> None:
        lines = textwrap.wrap(
            text, WIDTH, initial_indent=indent, subsequent_indent=indent + (more or ""),
            drop_whitespace=True,
        )  # fmt: skip
        for line in lines:
            self._write(line)
