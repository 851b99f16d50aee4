"""What follows from a failure: one table, complete."""

from __future__ import annotations

import pytest

from steer_policies.outcome import SUCCESS, TRAITS, Executed, Failure, Outcome, Vote, failed


def test_every_failure_has_its_traits() -> None:
    """A name without a row would have no consequence."""
    assert set(TRAITS) == set(Failure)


@pytest.mark.parametrize("failure", sorted(Failure))
def test_verdicts(failure: Failure) -> None:
    """The usual outcome and `executed`, unless the caller knows better."""
    usual = failed(failure)
    assert not usual.ok
    assert usual.outcome is TRAITS[failure].outcome
    assert usual.executed is TRAITS[failure].executed
    assert failed(failure, executed=Executed.YES).executed is Executed.YES


def test_success() -> None:
    """An answer to keep."""
    assert SUCCESS.ok
    assert SUCCESS.outcome is Outcome.OK


@pytest.mark.parametrize("failure", [Failure.CANCELLED, Failure.DEADLINE, Failure.QUEUE], ids=str)
def test_what_is_ours_is_no_evidence(failure: Failure) -> None:
    """Nobody's breaker learns from the caller's hang-up, its deadline, or our queue."""
    traits = TRAITS[failure]
    assert (traits.model_vote, traits.upstream_vote) == (Vote.NONE, Vote.NONE)


def test_throttling_is_no_failure() -> None:
    """The provider works as it should: the gate learns, no breaker does."""
    assert TRAITS[Failure.THROTTLED].model_vote is Vote.NONE
    assert TRAITS[Failure.THROTTLED].upstream_vote is Vote.SUCCESS
