"""The documentation says what is so: examples load, commands exist, links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from steer_policies.config import DialectName
from steer_policies.dialects import dialect
from steer_policies.outcome import TRAITS, Elsewhere, Failure
from steer_policies.paths import match_route
from steer_proxy.catalogue import PROVIDERS
from steer_proxy.cli.app import COMMANDS, build
from steer_proxy.engine.config import Config
from steer_proxy.settings import load
from steer_proxy.variables import base_url, settings

ROOT: Final = Path(__file__).resolve().parent.parent
DOCUMENTS: Final = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda path: path.as_posix()
)
NAMES: Final = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
TEXTS: Final = dict(zip(NAMES, (path.read_text("utf-8") for path in DOCUMENTS), strict=True))

_FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(
    r"(?:^    |`)(?P<command>(?:eval \"\$\()?(?:\.venv/bin/)?steer [^`\n]*)", re.MULTILINE
)
_MAKE = re.compile(r"`make ([a-z]+)|^    make ([a-z]+)", re.MULTILINE)
_ERROR = re.compile(r"[\"'](steer_[a-z_]+)[\"']")

#: What looks like a code and is none.
_NO_CODES: Final = frozenset(
    {"steer_policies", "steer_proxy", "steer_llm_sdk", "steer_meta", "steer_news", "steer_want"}
)


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    """Every fenced block of a kind, with the name of its document."""
    for name, text in TEXTS.items():
        for match in _FENCE.finditer(text):
            if match["kind"] == kind:
                yield name, match["body"]


def numbered(found: Iterator[tuple[str, str]]) -> list[pytest.ParameterSet]:
    return [pytest.param(body, id=f"{name}-{index}") for index, (name, body) in enumerate(found)]


def rows(name: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    below = f"\n{TEXTS[name]}".partition(f"\n{heading}\n")[2]
    assert below, f"{name} has no heading {heading!r}"
    lines = below.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


# --- examples


@pytest.mark.parametrize("body", numbered(blocks("yaml")))
def test_every_configuration_is_valid(body: str, tmp_path: Path) -> None:
    """As it stands there, with the environment variables and files it refers to."""
    environ = {name: _secret(name) for name in re.findall(r"\{env: (\w+)", body)}
    for number, path in enumerate(re.findall(r"file: ([^\s,}]+)", body)):
        secret = tmp_path / f"secret-{number}"
        secret.write_text(_secret(path))
        body = body.replace(path, str(secret))
    file = tmp_path / "steer.yaml"
    file.write_text(body)
    assert load(file, environ, {}).routes


def _secret(name: str) -> str:
    """A value of the kind a reference's name speaks of."""
    if "DATABASE" in name:
        return "postgresql://steer:secret@db/steer"
    return "0" * 64 if "ledger" in name else "sk-anything"


@pytest.mark.parametrize("body", numbered(blocks("python")))
def test_python_is_python(body: str) -> None:
    ast.parse(body)


def test_the_readme_shows_a_configuration() -> None:
    """The one thing a reader copies; and the regular expression that finds it works."""
    assert [name for name, _ in blocks("yaml")].count("README.md") == 1


# --- commands


def commands(text: str) -> Iterator[str]:
    """The `steer` commands a text shows."""
    for match in _CODE.finditer(text):
        command = match["command"].removeprefix('eval "$(').removeprefix(".venv/bin/")
        yield re.split(r'\s+#|\s*\||\s*>|\)"', command)[0].strip()


SHOWN: Final = sorted({command for text in TEXTS.values() for command in commands(text)})


def test_commands_are_found() -> None:
    """In code blocks and in running text."""
    assert {"steer env", "steer serve", "steer plan"} <= set(SHOWN)
    assert "steer plan -c steer.yaml --route chat body.json" in SHOWN


@pytest.mark.parametrize("command", SHOWN)
def test_every_command_exists_with_its_options(command: str) -> None:
    """What a reader types is understood: its name and each of its options."""
    words = shlex.split(command)[1:]
    if words[0].startswith("-"):
        assert words[0] in {"--version", "--help"}
        return
    assert words[0] in COMMANDS
    group = hasattr(import_module(f"steer_proxy.cli.{words[0]}"), "app")
    named = words[: 2 if group else 1]
    shown = CliRunner().invoke(build(), [*named, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    told = shown.output
    options = {part for word in words[1:] if word.startswith("-") for part in [word.split("=")[0]]}
    missing = [option for option in options if not re.search(rf"{option}\b", told)]
    assert not missing


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"| `steer {name}` |" in TEXTS["README.md"]


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    shown = {one or other for text in TEXTS.values() for one, other in _MAKE.findall(text)}
    assert {"run", "test", "demo"} <= shown <= targets


# --- links


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    """Within the project: to a file that exists, and to a heading it has."""
    broken = []
    for match in _LINK.finditer(TEXTS[name]):
        target, _, anchor = match["target"].partition("#")
        if "://" in target:
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path.read_text("utf-8"))):
            broken.append(match["target"])
    assert not broken


# --- references


def codes() -> set[str]:
    """Every error code that the sources name."""
    found: set[str] = set()
    for folder in ("policies/steer_policies", "proxy/steer_proxy"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(_ERROR.findall(path.read_text("utf-8")))
    return {code for code in found if code not in _NO_CODES and not code.startswith("steer_born")}


def test_every_error_code_is_documented_once() -> None:
    """With status, meaning and remedy; and none is documented that does not exist."""
    table = rows("docs/operations.md", "## Error codes")
    named = [row[0].strip("`") for row in table]
    assert len(named) == len(set(named))
    assert set(named) == codes() - {"steer_error"}
    assert all(cell for row in table for cell in row)
    assert "`steer_error`" in TEXTS["docs/operations.md"]


def test_every_header_of_ours_is_in_the_readme() -> None:
    """Those that callers may send, and those that answers carry."""
    found: set[str] = set()
    for folder in ("policies/steer_policies", "proxy/steer_proxy/http"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r'"(X-[A-Z][A-Za-z-]+)"', path.read_text("utf-8")))
    ours = {name for name in found if name.startswith("X-Steer-") or name == "X-Should-Retry"}
    assert len(ours) > 10
    assert [name for name in sorted(ours) if f"`{name}`" not in TEXTS["README.md"]] == []


def test_the_failures_are_those_of_the_code() -> None:
    """The table in the concepts says what `TRAITS` says."""
    told: dict[str, tuple[bool, str, str]] = {}
    for names, _, here, elsewhere, executed in rows("docs/concepts.md", "## What a failure means"):
        for name in re.findall(r"`([a-z_]+)`", names):
            told[name] = (here != "no", elsewhere, executed.partition(";")[0])
    words = {
        Elsewhere.ANY: "any",
        Elsewhere.NEVER: "nobody",
        Elsewhere.LARGER_CONTEXT: "declared larger context",
        Elsewhere.IF_ROUTE_ASKS: "with `on_refusal: fallback`",
    }
    # Its caller's, not an attempt's: nobody meets it as the verdict of one.
    apart = {Failure.CANCELLED}
    assert told == {
        str(failure): (traits.here, words[traits.elsewhere], str(traits.executed))
        for failure, traits in TRAITS.items()
        if failure not in apart
    }


def _default() -> Config:
    return load(None, {}, {})


def test_sdk_variables_are_those_of_the_catalogue() -> None:
    """Each is in the table of SDKs, with the value that `steer env` prints."""
    config = _default()
    told = rows("docs/sdks.md", "# SDKs")
    for setting in settings(config, base_url(config.listen.host, config.listen.port)):
        cells = [row for row in told if f"`{setting.name}`" in row[1]]
        assert cells, setting.name
        addresses = [row for row in cells if "http://" in row[2]]
        assert not addresses or any(f"`{setting.value}`" in row[2] for row in addresses)


def test_the_addresses_shown_have_routes() -> None:
    """Whatever base URL a reader copies, a route owns it."""
    paths = {route.path for route in _default().routes}
    own = {"/azure", "/tools/search"}  # made by the configuration beside them
    for name in ("README.md", "docs/sdks.md"):
        for path in re.findall(r"127\.0\.0\.1:4100(/[a-z0-9/]+)", TEXTS[name]):
            # Some SDKs add the rest of the route's path themselves.
            known = match_route(paths, path) or any(each.startswith(path) for each in paths)
            assert known or path in own, path


def test_the_providers_are_those_of_the_catalogue() -> None:
    """The README names each of them."""
    text = TEXTS["README.md"].lower().replace("-native", "")
    assert [name for name in PROVIDERS if name.removesuffix("-native") not in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_tidy(name: str) -> None:
    """One title, lines that fit (but for tables and addresses), no white space at their ends."""
    text = TEXTS[name]
    outside = _FENCE.sub("", text)
    assert len(re.findall(r"^# ", outside, re.MULTILINE)) == 1
    for number, line in enumerate(text.splitlines(), 1):
        assert line == line.rstrip(), f"{name}:{number}"
        assert len(line) <= 115 or line.startswith("|") or "://" in line, f"{name}:{number}"


def test_decisions_are_numbered_without_gaps() -> None:
    """And each has its three parts and a status."""
    records = [name for name in NAMES if name.startswith("docs/adr/")]
    numbers = [int(Path(name).name[:4]) for name in records]
    assert numbers == list(range(1, len(records) + 1))
    for number, name in zip(numbers, records, strict=True):
        text = TEXTS[name]
        assert text.startswith(f"# {number}. "), name
        parts = ("Status: ", "## Context", "## Decision", "## Consequences")
        assert all(part in text for part in parts), name


def test_error_codes_stand_where_the_documentation_says() -> None:
    """`error.code` for OpenAI's and plain HTTP, `error.type` for Anthropic's, Gemini's details."""
    code = "steer_upstream_broken"
    found = {
        name: json.loads(dialect(name).error(502, code, "x").body)["error"] for name in DialectName
    }
    assert found[DialectName.OPENAI]["code"] == found[DialectName.HTTP]["code"] == code
    assert found[DialectName.ANTHROPIC]["type"] == code
    assert found[DialectName.GEMINI]["details"][0]["reason"] == code
