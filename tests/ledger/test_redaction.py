"""Finding the function that `ledger.redact` names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from steer_proxy.ledger.redaction import find


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own."""
    (tmp_path / "steer_test_hooks.py").write_text(
        "def hide(row): return {}\nclass Rules:\n    hide = staticmethod(hide)\nword = 'x'\n"
    )
    (tmp_path / "steer_test_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "steer_test_hooks"


@pytest.mark.parametrize("name", ["hide", "Rules.hide"])
def test_a_function_is_found(module: str, name: str) -> None:
    """By its module and its name there."""
    assert find(f"{module}:{name}")({"path": "/x"}) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "expected package.module:function"),
        ("steer_test_hooks", "expected package.module:function"),
        ("steer_test_hooks:hide()", "expected package.module:function"),
        ("../hooks:hide", "expected package.module:function"),
        ("steer_test_hooks:hidden", "steer_test_hooks has no function hidden"),
        ("steer_test_hooks:word", "steer_test_hooks has no function word"),
        ("steer_test_nowhere:hide", "ModuleNotFoundError"),
        ("steer_test_broken:hide", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_missing_is_said(module: str, name: str, expected: str) -> None:
    """Whatever somebody else's module does."""
    assert module
    with pytest.raises(ValueError, match=re.escape(expected)):
        find(name)
