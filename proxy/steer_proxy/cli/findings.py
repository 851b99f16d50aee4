"""What `steer doctor` finds, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How serious a finding is; only a failure changes the exit code."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing, nothing to do."""
    WARNING = "warning"
    """Steer runs, but something will surprise somebody."""
    FAILURE = "failure"
    """Steer does not start, or cannot do its work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was found, and what to do about it.

    Texts never hold the value of a secret.
    """

    name: str
    level: Level
    text: str
    remedy: str = ""


def ok(name: str, text: str) -> Finding:
    """Nothing is wrong."""
    return Finding(name, Level.OK, text)


def note(name: str, text: str, remedy: str = "") -> Finding:
    """Something worth knowing."""
    return Finding(name, Level.NOTE, text, remedy)


def warning(name: str, text: str, remedy: str) -> Finding:
    """Something that will surprise somebody."""
    return Finding(name, Level.WARNING, text, remedy)


def failure(name: str, text: str, remedy: str) -> Finding:
    """Something that keeps Steer from its work."""
    return Finding(name, Level.FAILURE, text, remedy)
