"""The house itself: what is shipped, what is locked, and what must never be committed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES: Final = [
    Path(name) for name in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
]
LOCKS: Final = ["build", "runtime", "demo", "dev"]
MIGRATIONS: Final = ROOT / "migrations"
NPM_LOCK: Final = ROOT / "tests" / "npm" / "package-lock.json"

_REQUIREMENT = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>\S+)( ; [^\\]+)?")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")

# No pattern matches its own source, so that this file passes its own test.
_FOREIGN: Final = {
    "the address of a package index": re.compile(
        r"pypi\.(org|io)|files\.pythonhosted|registry\.(npmjs|yarnpkg)"
    ),
    "an option that names a package index": re.compile(
        r"--(extra-)?index[-]url|--find[-]links|--trusted[-]host|^(index-url|registry)\s*=.*[:][/]"
    ),
    "a path of one machine": re.compile(
        r"(?<![\w.])/(work/(main|shared)|root/|Users/\w|tmp/bash_jobs)"
    ),
}


def committed_files() -> list[Path]:
    """What git tracks or would add; without git (an sdist), everything but what make made."""
    if (ROOT / ".git").exists() and (git := shutil.which("git")):
        listing = subprocess.run(
            [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        names = {name for name in listing.stdout.decode().split("\0") if name}
        return [path for name in sorted(names) if (path := ROOT / name).is_file()]
    made = {".venv", "node_modules", "__pycache__", "build", "dist"}
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.is_file() and not made.intersection(path.relative_to(ROOT).parts)
    ]


def logical_lines(text: str) -> list[str]:
    """Lines of a requirements file without comments, continuation lines joined."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def pins(name: str) -> dict[str, str]:
    """Name to version (and marker) of everything a lock installs."""
    pinned: dict[str, str] = {}
    for line in logical_lines((ROOT / "requirements" / f"{name}.txt").read_text("utf-8")):
        requirement, *hashes = line.split(" --hash")
        match = _REQUIREMENT.fullmatch(requirement.strip())
        assert match, f"requirements/{name}.txt: not an exact version: {line[:80]}"
        assert hashes, f"requirements/{name}.txt: no hash: {line[:80]}"
        assert all(_HASH.fullmatch("--hash" + item.strip()) for item in hashes)
        pinned[match["name"]] = match["version"]
    return pinned


def ranges(name: str) -> set[str]:
    """The requirements a `.in` file itself names, in one spelling."""
    lines = logical_lines((ROOT / "requirements" / f"{name}.in").read_text("utf-8"))
    return {spelled(line) for line in lines if not line.startswith("-")}


def spelled(requirement: str) -> str:
    return requirement.replace("'", '"').replace(" ", "").lower()


def test_runtime_requirements_are_those_of_the_distribution() -> None:
    """What we lock and test is what installing `steer-llm` asks for."""
    assert ranges("runtime") == {spelled(item) for item in PYPROJECT["project"]["dependencies"]}


def test_demo_requirements_are_those_of_the_extra() -> None:
    """`make demo` installs what `pip install steer-llm[demo]` does."""
    extra = PYPROJECT["project"]["optional-dependencies"]["demo"]
    assert ranges("demo") == {spelled(item) for item in extra}


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_an_exact_version_with_hashes(name: str) -> None:
    """Nothing that was not locked can be installed."""
    assert pins(name)


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [("runtime", "demo"), ("demo", "dev"), ("build", "dev")],
)
def test_larger_locks_hold_the_smaller_ones(smaller: str, larger: str) -> None:
    """Tests run against the versions that users run."""
    assert pins(smaller).items() <= pins(larger).items()


def test_what_installs_is_locked_too() -> None:
    """An interpreter's own pip may be too old for locks that leave extras out, as ours do."""
    assert "pip" in pins("build")


def test_npm_packages_are_exact_and_carry_no_address() -> None:
    """`npm ci` installs one set of packages, checked by hash, from wherever the machine is told."""
    wanted = json.loads((NPM_LOCK.parent / "package.json").read_text("utf-8"))["dependencies"]
    lock = json.loads(NPM_LOCK.read_text("utf-8"))
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values()), wanted
    assert lock["packages"][""]["dependencies"] == wanted
    for name, package in lock["packages"].items():
        if name:
            assert "resolved" not in package, name
            assert package["integrity"].startswith("sha512-"), name


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_packages_exist_and_are_typed(package: Path) -> None:
    """Each source root holds exactly one package, and says that its types are meant for others."""
    source_root = ROOT / package.parent
    assert [path.parent for path in source_root.glob("*/__init__.py")] == [ROOT / package]
    assert (ROOT / package / "py.typed").read_bytes() == b""


def test_the_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    """Presets and schemas are shipped, caches and tests are not."""
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("steer_llm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
        (entry_points,) = (name for name in shipped if name.endswith("/entry_points.txt"))
        assert "steer = steer_proxy.cli:main" in archive.read(entry_points).decode()
    shipped = {name for name in shipped if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT / package.parent).as_posix()
        for package in PACKAGES
        for path in committed_files()
        if path.is_relative_to(ROOT / package)
    }
    migrations = {"env.py", *(f"versions/{path.name}" for path in MIGRATIONS.glob("versions/*.py"))}
    assert shipped == expected | {f"steer_proxy/migrations/{name}" for name in migrations}


def test_committed_files_name_no_index_and_no_machine() -> None:
    """A clone installs from where its machine is told to, and needs nothing of ours."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {what}"
        for path in committed_files()
        for number, line in enumerate(_lines(path), start=1)
        for what, pattern in _FOREIGN.items()
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    return [] if b"\0" in content else content.decode("utf-8").splitlines()
