"""The migrations are in the wheel, and work from there."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from steer_proxy.ledger import migrate
from steer_proxy.ledger.migrate import HEAD
from tests.migrations.places import PostgresPlace, SqlitePlace

ROOT: Final = Path(__file__).resolve().parents[2]

_CODE: Final = """
import json, sys
from steer_proxy.ledger import migrate
urls = sys.argv[1:]
for url in urls:
    migrate.upgrade(url)
print(json.dumps([str(migrate.scripts()), *(migrate.current(url).revision for url in urls)]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as an installation has it."""
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_an_installed_steer_migrates(
    installed: Path, sqlite_place: SqlitePlace, postgres_place: PostgresPlace
) -> None:
    """Both databases, from the revisions inside the package, away from any checkout."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE, sqlite_place.url, postgres_place.url],
        cwd=installed.parent,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    scripts, *revisions = json.loads(done.stdout)
    assert scripts == str(installed / "steer_proxy" / "migrations")
    assert revisions == [HEAD, HEAD]
    assert migrate.current(sqlite_place.url).revision == HEAD
