"""Presets of routes."""

from __future__ import annotations

from importlib.resources import files

import pytest

from steer_policies.config import Ambiguous, CommitPoint, OnBreak
from steer_policies.route import Order, UsageMode
from steer_proxy.settings.models import RouteBlock
from steer_proxy.settings.presets import NAMES, preset
from tests.proxy.settings.conftest import Load


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_valid_and_says_what_it_does(name: str) -> None:
    """Its keys are a route's, and it begins with a comment in words."""
    RouteBlock.model_validate(dict(preset(name)) | {"name": "r", "path": "/", "candidates": ["a"]})
    text = files("steer_policies").joinpath("presets", f"{name}.yaml").read_text("utf-8")
    assert text.startswith(f"# {name}: ")
    assert "What it does to a call" in text


def test_every_preset_that_is_shipped_has_a_name() -> None:
    """None is forgotten."""
    shipped = {
        each.name.removesuffix(".yaml")
        for each in files("steer_policies").joinpath("presets").iterdir()
        if each.name.endswith(".yaml")
    }
    assert shipped == set(NAMES)


def test_a_name_that_is_none() -> None:
    """Only the shipped ones are read."""
    with pytest.raises(KeyError):
        preset("../config")


def test_presets_change_routes(configure: Load) -> None:
    """Each in the way its name promises."""
    config = configure(
        "routes:\n"
        + "\n".join(
            f"- {{name: {name}, path: /{name}, candidates: [openai], preset: {name}}}"
            for name in NAMES
        )
    )
    resilient, cheap, strict, through = (route.policy for route in config.routes[: len(NAMES)])
    assert (resilient.on_break, resilient.retry.max_total_attempts) == (OnBreak.RESUME, 10)
    assert resilient.retry.ambiguous is None
    assert (cheap.order, cheap.usage) == (Order.CHEAPEST, UsageMode.ASK)
    assert strict.ceiling is not None
    assert strict.ceiling.cost_usd == 0.10
    assert strict.retry.ambiguous is Ambiguous.FAIL
    assert through.retry.max_total_attempts == 1
    assert through.commit is CommitPoint.HEADERS


def test_a_routes_own_keys_win(configure: Load) -> None:
    """Key by key, not block by block."""
    config = configure(
        "routes: [{name: openai, preset: resilient, on_break: error, retry: {max_attempts: 2}}]"
    )
    policy = config.routes[0].policy
    assert policy.on_break is OnBreak.ERROR
    assert (policy.retry.max_attempts, policy.retry.max_total_attempts) == (2, 10)
