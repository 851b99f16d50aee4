"""Demands on the answering model."""

from __future__ import annotations

from typing import Any

import pytest

from steer_policies.config import ModelFacts
from steer_policies.quality import Quality, parse_quality


def test_demands_are_read() -> None:
    """Known keys become demands; everything stays visible to rules."""
    sent = {
        "min_confidence": 1,
        "capabilities": ["vision"],
        "min_context_tokens": 1000,
        "style": "terse",
    }
    assert parse_quality(sent) == Quality(
        min_confidence=1.0, capabilities=("vision",), min_context_tokens=1000, attributes=sent
    )
    assert parse_quality({}) == Quality()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("high", "quality is an object"),
        ({"min_confidence": 1.5}, "min_confidence must be a number from 0 to 1"),
        ({"min_confidence": "high"}, "min_confidence must be a number from 0 to 1"),
        ({"min_confidence": True}, "min_confidence must be a number from 0 to 1"),
        ({"min_confidence": float("nan")}, "min_confidence must be a number from 0 to 1"),
        ({"capabilities": "vision"}, "capabilities must be a list of names"),
        ({"capabilities": [1]}, "capabilities must be a list of names"),
        ({"min_context_tokens": 0}, "min_context_tokens must be a whole number greater than 0"),
        ({"min_context_tokens": 1.5}, "min_context_tokens must be a whole number"),
        ({"min_context_tokens": True}, "min_context_tokens must be a whole number"),
    ],
)
def test_demands_that_cannot_be_met_are_refused(value: Any, message: str) -> None:
    """Naming the key and what was expected."""
    with pytest.raises(ValueError, match=message):
        parse_quality(value)


@pytest.mark.parametrize(
    ("quality", "model", "expected"),
    [
        (Quality(min_confidence=0.9), None, None),
        (Quality(min_confidence=0.9), ModelFacts(), None),
        (Quality(min_confidence=0.9), ModelFacts(quality=0.9), None),
        (
            Quality(min_confidence=0.9),
            ModelFacts(quality=0.85),
            "declared quality 0.85 is below 0.9",
        ),
        (Quality(), ModelFacts(quality=0.0), None),
        (Quality(capabilities=("vision",)), ModelFacts(), None),
        (Quality(capabilities=("vision",)), ModelFacts(capabilities=("tools", "vision")), None),
        (
            Quality(capabilities=("vision", "audio")),
            ModelFacts(capabilities=("vision",)),
            "audio not among the declared capabilities",
        ),
        (Quality(min_context_tokens=1000), ModelFacts(), None),
        (Quality(min_context_tokens=1000), ModelFacts(context_tokens=1000), None),
        (
            Quality(min_context_tokens=1000),
            ModelFacts(context_tokens=999),
            "context of 999 tokens is below 1000",
        ),
    ],
)
def test_what_is_not_declared_satisfies(
    quality: Quality, model: ModelFacts | None, expected: str | None
) -> None:
    """Only a declaration can fall short."""
    assert quality.shortfall(model) == expected
