"""The demo: every scenario ends as it promises, and it says so when one does not."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from steer_proxy.demo import callers, run
from steer_proxy.demo.plain import PlainScreen
from steer_proxy.demo.scenarios import SCENARIOS
from steer_proxy.demo.screen import RichScreen
from steer_proxy.demo.stage import Scenario, Stage, perform
from steer_proxy.demo.story import Line, Story, Tone

pytest.importorskip("openai", reason="the demo drives the real SDKs")
pytest.importorskip("anthropic", reason="the demo drives the real SDKs")

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

#: What the SDKs make of each fault alone: the demo claims that Steer does better.
ALONE = {
    "retry-after": "the answer",
    "reset-header": "RateLimitError",
    "fallback": "InternalServerError",
    "reset": "the answer",
    "silence": "still waiting",
    "slow-first-token": "still waiting",
    "error-in-200": "APIStatusError",
    "cut": "half an answer",
    "resume": "half an answer",
    "too-long": "BadRequestError",
    "circuit": "APIConnectionError",
    "keys": "",
    "no-multiplying": "InternalServerError",
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_every_scenario_ends_as_it_promises(scenario: Scenario) -> None:
    """With the real SDKs; and without Steer it ends as the demo says it does."""
    result = await perform(scenario, Story())
    assert result.fault is None
    assert result.alone.brief.startswith(ALONE[scenario.name])
    assert result.story.lines
    assert not [line for line in result.story.lines if line.tone is Tone.OPEN]


async def test_the_second_call_waits_where_the_sdk_alone_is_refused() -> None:
    """One refusal with Steer, two without."""
    result = await perform(BY_NAME["retry-after"], Story())
    told = [line.text for line in result.story.lines]
    assert sum(text.startswith("429") for text in told) == 1
    assert result.alone.text.endswith("4 requests")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"attempts": 3}, "the number of attempts to be 3, got 2"),
        ({"upstream": "spare"}, "the upstream to be spare, got home"),
        ({"error": "APIError"}, "the outcome to be APIError, got an answer"),
        ({"home": 5}, "requests to home to be 5, got 2"),
        ({"spare": 1}, "requests to spare to be 1, got 0"),
    ],
)
async def test_a_broken_promise_is_told(change: dict[str, Any], fault: str) -> None:
    """Each part of what is expected can fail a scenario, and with it the demo."""
    scenario = BY_NAME["reset"]
    wrong = replace(scenario, expected=replace(scenario.expected, **change))
    lines: list[str] = []
    assert await run.play(PlainScreen(lines.append), [wrong]) is False
    text = " ".join(" ".join(lines).split())
    assert f"FAULT: expected {fault}" in text
    assert "0 of 1 went as promised" in text


async def test_half_an_answer_is_a_fault() -> None:
    """Text that ends early is no answer, whatever the SDK thinks of it."""

    async def around_steer(stage: Stage) -> None:
        client = callers.caller("openai", stage.home.address, stage.home.key)
        stage.seen.append(await client.ask(stream=True, heard=lambda _: None))
        await client.close()

    wrong = replace(BY_NAME["resume"], play=around_steer)
    result = await perform(wrong, Story())
    assert result.fault == "expected the whole answer, got 'A steady hand on the tiller keeps'"


async def test_a_scenario_without_end_is_ended() -> None:
    """What hangs is a fault, not a hanging demo."""
    stuck = replace(BY_NAME["silence"], home={})
    result = await perform(stuck, Story())
    assert result.fault == "no end in 20 s"


async def test_a_crossing_key_would_be_seen() -> None:
    """The check of the scenario `keys` finds the caller's key, wherever it stands."""

    async def give_it_away(stage: Stage) -> None:
        await stage.ask()
        seen = stage.spare.asked[0]
        stage.spare.asked[0] = replace(seen, headers={**seen.headers, "x-any": stage.home.key})

    result = await perform(replace(BY_NAME["keys"], play=give_it_away), Story())
    assert result.fault == "the caller's credential reached spare in x-any"


async def test_plain_lines_are_short_and_ascii() -> None:
    """Fit for every terminal and log."""
    lines: list[str] = []
    chosen = [BY_NAME["cut"], BY_NAME["keys"], BY_NAME["circuit"]]
    assert await run.play(PlainScreen(lines.append), chosen) is True
    assert all(line.isascii() and len(line) < 80 for line in lines)
    assert lines.count("    as promised") == 3


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
async def test_the_screen_shows_every_scenario(width: int, encoding: str) -> None:
    """At 80 columns and others, with and without Unicode."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, force_terminal=True, width=width, height=24, color_system=None)
    with RichScreen(console) as screen:
        assert await run.play(screen, [BY_NAME["fallback"], BY_NAME["cut"]]) is True
    file.flush()
    shown = raw.getvalue().decode(encoding)
    assert "503 Service Unavailable" in shown
    assert "2 of 2 went as promised" in " ".join(shown.split())
    mark = "✓" if encoding == "utf-8" else "+"
    assert f"{mark} 503, and it stays" in shown


def test_the_screen_redraws_while_a_scenario_plays() -> None:
    """Lines under way, bars of waits, and what a streaming caller reads."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    story = Story(heard="A steady hand")
    story.lines += [
        Line(0.0, "home", "is asked", Tone.OPEN),
        Line(0.0, "Steer", "waits 1.00 s", Tone.WAIT, span=1.0),
    ]
    with RichScreen(console) as screen:
        screen.begin(BY_NAME["cut"], story, 1, 1)
        console.print(screen._now())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("is asked", "waits 1.00 s  ───", "A steady hand"):
        assert part in text


def test_a_missing_sdk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the remedy, and exit 1."""
    monkeypatch.setattr(callers, "find_spec", lambda name: None if name == "anthropic" else name)
    from steer_proxy.cli.app import build

    outcome = CliRunner().invoke(build(), ["demo"])
    assert outcome.exit_code == 1
    assert "anthropic cannot be imported" in outcome.output
    assert "pip install 'steer-llm[demo]'" in outcome.output


def test_scenarios_are_listed_and_chosen_by_name() -> None:
    """An unknown one is wrong use: exit 2, with the nearest name."""
    from steer_proxy.cli.app import build

    listed = CliRunner().invoke(build(), ["demo", "--list"])
    assert [line.split()[0] for line in listed.output.splitlines()] == list(BY_NAME)
    outcome = CliRunner().invoke(build(), ["demo", "fallbak"])
    assert outcome.exit_code == 2
    assert "did you mean fallback?" in outcome.output


def test_the_command_runs_on_the_real_clock(tmp_path: Path) -> None:
    """As users run it, in a process of its own, behind a proxy that must not be used; and nothing
    of theirs is touched, such as the ledger in the folder they stand in."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "steer_proxy", "demo", "too-long", "keys"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 went as promised" in done.stdout
    assert not done.stderr
    assert list(tmp_path.iterdir()) == []
