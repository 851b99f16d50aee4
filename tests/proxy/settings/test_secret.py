"""Secrets are known by where they are kept."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from steer_proxy.engine.config import Credential
from steer_proxy.engine.secret import CHECK_EVERY, MAX_BYTES, Secret, SecretUnavailable


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self) -> None:
        self.now += CHECK_EVERY


def write(path: Path, text: str, stamp: int) -> None:
    """Write a file with a time of change of its own: two writes may share a clock tick."""
    path.write_text(text)
    os.utime(path, ns=(stamp, stamp))


def test_from_the_environment() -> None:
    """Looked up once: a process's environment does not change."""
    environ = {"KEY": " value \n"}
    secret = Secret(env="KEY", environ=environ)
    environ["KEY"] = "other"
    assert secret.read() == "value"
    assert secret.reference == "environment variable KEY"


def test_from_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own environment, when no other is given."""
    monkeypatch.setenv("SOME_KEY", "value")
    assert Secret(env="SOME_KEY").read() == "value"


def test_a_file_is_read_anew_when_it_changed(tmp_path: Path) -> None:
    """At most one look a second."""
    path, clock = tmp_path / "key", Clock()
    write(path, "one\n", 1)
    secret = Secret(file=str(path), clock=clock)
    assert secret.read() == "one"
    write(path, "two\n", 2)
    assert secret.read() == "one"
    clock.advance()
    assert secret.read() == "two"
    clock.advance()
    assert secret.read() == "two"
    write(path, "three\n", 2)
    clock.advance()
    assert secret.read() == "three"


@pytest.mark.parametrize("content", [None, "", "half\nwritten", "x" * (MAX_BYTES + 1), "schlüssel"])
def test_a_file_that_turns_bad_keeps_its_last_value(tmp_path: Path, content: str | None) -> None:
    """A rotation may leave it missing, empty or half-written for a moment; then it is seen."""
    path, clock = tmp_path / "key", Clock()
    write(path, "one", 1)
    secret = Secret(file=str(path), clock=clock)
    assert secret.read() == "one"
    if content is None:
        path.unlink()
    else:
        write(path, content, 2)
    clock.advance()
    assert secret.read() == "one"
    write(path, "two", 3)
    clock.advance()
    assert secret.read() == "two"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("se\ncret", "is not one line of printable ASCII"),
        ("s\u00e9cret", "is not one line of printable ASCII"),
        ("x" * (MAX_BYTES + 1), f"holds more than {MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_was_never_good(tmp_path: Path, content: str | None, reason: str) -> None:
    """The message names the reference, never the value."""
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    secret = Secret(file=str(path), clock=Clock())
    with pytest.raises(SecretUnavailable) as caught:
        secret.read()
    assert str(caught.value) == f"file {path} {reason}"


@pytest.mark.parametrize(("value", "reason"), [(None, "is not set"), ("", "is empty")])
def test_a_variable_without_a_value(value: str | None, reason: str) -> None:
    """As above."""
    environ = {} if value is None else {"KEY": value}
    with pytest.raises(SecretUnavailable, match=f"environment variable KEY {reason}"):
        Secret(env="KEY", environ=environ).read()


def test_exactly_one_reference() -> None:
    """Neither none nor two."""
    for env, file in ((None, None), ("A", "B")):
        with pytest.raises(ValueError, match="exactly one"):
            Secret(env=env, file=file)


def test_the_value_is_nowhere_to_be_seen() -> None:
    """Not in repr, not in comparison, not in a pickle."""
    secret = Secret(env="KEY", environ={"KEY": "hunter2"})
    assert repr(secret) == "Secret(env='KEY')"
    assert "hunter2" not in repr(Credential(header="x", prefix="", secret=secret))
    assert secret == Secret(env="KEY", environ={"KEY": "other"})
    assert secret != Secret(env="OTHER", environ={})
    assert secret != Secret(file="KEY")
    assert secret != "KEY"
    assert len({secret, Secret(env="KEY", environ={})}) == 1
    with pytest.raises(TypeError, match="not written anywhere"):
        pickle.dumps(secret)


def test_a_credential_puts_its_prefix_before_it() -> None:
    """The header's value as it is sent."""
    secret = Secret(env="KEY", environ={"KEY": "k"})
    assert Credential(header="authorization", prefix="Bearer ", secret=secret).value() == "Bearer k"
