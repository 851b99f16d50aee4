"""The guide of the in-process API does what it says: every block of code runs and prints what it
shows."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from steer_llm_sdk.orchestration import get_global_registry

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "guide"
PAGES: Final = {path.name: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.md"))}
TOPICS: Final = sorted(set(PAGES) - {"README.md"})

_FENCE: Final = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)

#: What a page may hold beside Python: its output, and what other tests check.
_OTHER_KINDS: Final = frozenset({"text", "yaml", "mermaid"})


@dataclass(frozen=True)
class Block:
    """A block of Python, and the output shown right below it."""

    page: str
    line: int
    code: str
    shown: str | None

    @property
    def program(self) -> bool:
        """Whether it brings its own loop, and so has to be run as a program."""
        return "asyncio.run(" in self.code


def blocks(page: str) -> Iterator[Block]:
    text = PAGES[page]
    for match in _FENCE.finditer(text):
        if match["kind"] != "python":
            continue
        after = _FENCE.match(text, match.end() + 2) if text[match.end() :].strip() else None
        shown = after["body"] if after is not None and after["kind"] == "text" else None
        yield Block(page, text.count("\n", 0, match.start("body")), match["body"], shown)


PROGRAMS: Final = [block for page in PAGES for block in blocks(page) if block.program]


def test_there_is_a_guide() -> None:
    """Pages, each with code; the regular expression that finds it works."""
    assert len(TOPICS) >= 15
    assert all(any(blocks(page)) for page in TOPICS)
    for page, text in PAGES.items():
        found = [match["kind"] for match in _FENCE.finditer(text)]
        assert len(found) * 2 == len(re.findall(r"^```", text, re.MULTILINE)), page
        assert set(found) <= {"python", *_OTHER_KINDS}, page
        outputs = sum(block.shown is not None for block in blocks(page))
        assert outputs == found.count("text"), f"{page}: an output without its code"


@pytest.mark.parametrize("page", TOPICS)
async def test_every_block_runs(page: str, tmp_path: Path, monkeypatch: Any) -> None:
    """In the order of the page, in one namespace, printing what stands below it."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        for block in blocks(page):
            if not block.program:
                printed = await run(block, names)
                assert block.shown in {None, printed}, f"{page}:{block.line + 1}\n{printed}"
                assert block.shown is not None or not printed, f"{page}:{block.line + 1}: {printed}"
    finally:
        forget_tools()


async def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block as the asyncio REPL would, with `await` outside of functions."""
    source = "\n" * block.line + block.code
    code = compile(
        source, f"docs/guide/{block.page}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, names)  # noqa: S307 - our own documentation
        if inspect.iscoroutine(result):
            await result
    return printed.getvalue()


@pytest.mark.parametrize("block", [pytest.param(each, id=each.page) for each in PROGRAMS])
def test_every_program_runs(block: Block, tmp_path: Path) -> None:
    """Copied to a file and started, on the real clock."""
    file = tmp_path / "program.py"
    file.write_text(block.code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == block.shown


def forget_tools() -> None:
    registry = get_global_registry()
    for name in list(registry.list_tools()):
        registry.unregister(name)


# --- form


@pytest.mark.parametrize("page", TOPICS)
def test_pages_begin_with_the_gain_and_end_with_the_dangers(page: str) -> None:
    """What the reader gets comes first, and the last heading tells what can go wrong."""
    first = PAGES[page].split("\n\n")[1]
    assert first.startswith("**You get** "), page
    headings = re.findall(r"^## (.+)$", _FENCE.sub("", PAGES[page]), re.MULTILINE)
    assert headings[-1] == "Dangers"
    assert PAGES[page].partition("\n## Dangers\n")[2].count("\n- ") >= 2


def test_every_page_is_listed() -> None:
    """The table of contents links each page once."""
    linked = re.findall(r"\]\(([a-z-]+\.md)\)", PAGES["README.md"])
    assert sorted(set(linked)) == TOPICS


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    below = PAGES[page].partition(f"\n{heading}\n")[2]
    lines = below.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    return found
