"""The demo in a terminal: the scenario that plays is redrawn as it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from steer_proxy.demo.ending import Ending
from steer_proxy.demo.stage import Result, Scenario
from steer_proxy.demo.story import Line, Story, Tone

#: Widest that lines get, in columns: longer ones are hard to read.
MAX_WIDTH: Final = 96

#: Cells of the bar that fills while Steer waits.
_BAR: Final = 16

_STYLES: Final = {
    Tone.GOOD: "green",
    Tone.BAD: "red",
    Tone.WAIT: "yellow",
    Tone.NOTE: "dim",
    Tone.OPEN: "cyan",
}
_MARKS: Final = {Tone.GOOD: "✓", Tone.BAD: "✗", Tone.WAIT: "◷", Tone.NOTE: "·", Tone.OPEN: "…"}
_ASCII: Final = {Tone.GOOD: "+", Tone.BAD: "x", Tone.WAIT: "~", Tone.NOTE: "-", Tone.OPEN: " "}
_WHO: Final = {"Steer": "bold magenta", "home": "bold", "spare": "bold", "caller": "bold blue"}


class RichScreen:
    """Draws in a terminal, as a context manager around the whole demo."""

    pause = 0.7

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width = min(console.width, MAX_WIDTH)
        self._ascii = console.options.ascii_only
        self._scenario: Scenario | None = None
        self._story = Story()
        self._title = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """Take what is being drawn off the screen."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def open(self, introduction: str) -> None:
        """Say what is about to be seen."""
        title = Text(" Steer ", "bold white on magenta")
        self._print(Group(Text(), title, Text(introduction, "dim"), Text()))

    def begin(self, scenario: Scenario, story: Story, number: int, count: int) -> None:
        """A scenario begins: from now on it is what is drawn."""
        self._scenario, self._story = scenario, story
        self._title = f"{number}/{count}  [bold]{scenario.title}[/]"
        self._live = Live(
            console=self._console, get_renderable=self._now, refresh_per_second=15, transient=True
        )
        self._live.start()

    def end(self, result: Result) -> None:
        """A scenario has ended: what it came to stays on the screen."""
        self._stop()
        self._print(self._panel(result.scenario, result.story, result))

    def close(self, results: Sequence[Result], last: str) -> None:
        """Sum up."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for name in ("  what goes wrong", "without Steer", "with Steer"):
            # The ellipsis itself is no ASCII.
            table.add_column(name, no_wrap=True, overflow="crop" if self._ascii else "ellipsis")
        for result in results:
            mark = self._mark(Tone.GOOD if result.fault is None else Tone.BAD)
            title = Text.assemble(mark, " ", result.scenario.title)
            # An exception may be just what was promised.
            promised = replace(result.steered, good=result.fault is None)
            table.add_row(title, _brief(result.alone), _brief(promised))
        self._print(Group(Text(), table, Text(), Text(last)))

    def _now(self) -> RenderableType:
        """What is drawn at this moment."""
        if self._scenario is None:
            return Text()
        return self._panel(self._scenario, self._story, None)

    def _panel(self, scenario: Scenario, story: Story, result: Result | None) -> Panel:
        parts: list[RenderableType] = [Text(scenario.about, "dim"), Text(), self._lines(story)]
        foot, style = "", "cyan"
        if result is None:
            if story.heard:
                parts += [Text(), self._pair("the caller reads", Text(story.heard, "italic"))]
        else:
            promised = replace(result.steered, good=result.fault is None)
            parts += [Text(), self._pair("with Steer", _full(promised, "bold green"))]
            if result.alone.text:
                parts.append(self._pair("without", _full(result.alone, "green")))
            if result.fault is not None:
                parts.append(self._pair("not as promised", Text(result.fault, "red")))
            style = "green" if result.fault is None else "red"
            foot = "" if result.fault is None else "not as promised"
        return Panel(
            Group(*parts),
            title=self._title,
            title_align="left",
            subtitle=foot,
            subtitle_align="right",
            border_style=style,
            width=self._width,
            padding=(0, 1),
        )

    def _lines(self, story: Story) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", style="dim", width=7, no_wrap=True)
        table.add_column(width=6, no_wrap=True)
        table.add_column(width=1, no_wrap=True)
        table.add_column(ratio=1)
        for line in tuple(story.lines):
            text = Text(line.text, _STYLES[line.tone])
            if line.span:
                text.append_text(self._bar(line, story.now()))
            mark: RenderableType = self._mark(line.tone)
            if line.tone is Tone.OPEN and not self._ascii:
                mark = Spinner("dots", style=_STYLES[Tone.OPEN])
            table.add_row(f"{line.at:.2f} s", Text(line.who, _WHO[line.who]), mark, text)
        return table

    def _bar(self, line: Line, now: float) -> Text:
        done = min(1.0, max(0.0, (now - line.at) / line.span))
        cells = round(_BAR * done)
        full, empty = ("=", " ") if self._ascii else ("━", "─")
        return Text.assemble("  ", (full * cells, "yellow"), (empty * (_BAR - cells), "dim"))

    def _mark(self, tone: Tone) -> Text:
        return Text((_ASCII if self._ascii else _MARKS)[tone], _STYLES[tone])

    @staticmethod
    def _pair(name: str, value: Text) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=16, style="bold", no_wrap=True)
        table.add_column(ratio=1)
        table.add_row(name, value)
        return table

    def _print(self, what: RenderableType) -> None:
        self._console.print(what, width=self._width)


def _full(ending: Ending, style: str) -> Text:
    return Text(ending.text, style if ending.good else "yellow")


def _brief(ending: Ending) -> Text:
    if not ending.brief:
        return Text("(not tried)", "dim")
    return Text(ending.brief, "green" if ending.good else "yellow")
