"""What a ledger remembers of the encryption keys that were used with it."""

from __future__ import annotations

import pytest

from tests.ledger_contract.subject import Subjects


async def test_a_name_has_one_check_value(subjects: Subjects) -> None:
    """The first; whoever comes with another learns of it, and changes nothing."""
    async with subjects() as subject:
        assert await subject.ledger.check_keys({}) == {}
        assert await subject.ledger.check_keys({"a": "1" * 64}) == {"a": "1" * 64}
        both = {"a": "1" * 64, "b": "2" * 64}
        assert await subject.ledger.check_keys({"b": "2" * 64}) == both
        assert await subject.ledger.check_keys({"a": "3" * 64, "b": "2" * 64}) == both
        assert await subject.ledger.check_keys({}) == both


async def test_it_outlives_the_process(subjects: Subjects) -> None:
    """A key that is not in the ring any more is still known."""
    async with subjects() as subject:
        await subject.ledger.check_keys({"a": "1" * 64, "b": "2" * 64})
        await subject.reopen()
        assert await subject.ledger.check_keys({"b": "4" * 64, "c": "3" * 64}) == {
            "a": "1" * 64,
            "b": "2" * 64,
            "c": "3" * 64,
        }


@pytest.mark.parametrize("name", ["key", "secret", "min_writer", "a:b", "x" * 64])
async def test_names_are_only_names(subjects: Subjects, name: str) -> None:
    """They are in nobody's way, whatever else the ledger keeps there."""
    async with subjects() as subject:
        secret = subject.ledger.secret
        assert await subject.ledger.check_keys({name: "1" * 64}) == {name: "1" * 64}
        await subject.reopen()
        assert await subject.ledger.check_keys({}) == {name: "1" * 64}
        assert subject.ledger.secret == secret
