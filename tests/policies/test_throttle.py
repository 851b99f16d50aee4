"""The throttle gate."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from steer_policies.throttle import (
    FIRST_PAUSE,
    GATE_TRANSITIONS,
    LONGEST_PAUSE,
    MAX_CLOSED,
    PROBE_PATIENCE,
    PROBE_POLL,
    RAMP_SECONDS,
    RAMP_START,
    Gate,
    GateEvent,
    GateState,
    Pass,
    Wait,
)


def passed(gate: Gate, now: float, jitter: float = 0.0) -> Pass:
    admission = gate.admit(now, jitter)
    assert isinstance(admission, Pass)
    return admission


def wait(gate: Gate, now: float, jitter: float = 0.0) -> float:
    admission = gate.admit(now, jitter)
    assert isinstance(admission, Wait)
    return admission.seconds


def closed(seconds: float = 20.0) -> Gate:
    gate = Gate()
    assert gate.close(0.0, seconds)
    return gate


def ramping(now: float = 20.0) -> Gate:
    """A gate whose probe was let through at `now`."""
    gate = closed(now)
    gate.settle(passed(gate, now), False, now)
    assert gate.state(now) is GateState.RAMPING
    return gate


def test_the_whole_machine() -> None:
    """Every state can be refused; otherwise it goes round."""
    assert {key: state.value for key, state in GATE_TRANSITIONS.items()} == {
        (GateState.OPEN, GateEvent.REFUSED): "closed",
        (GateState.CLOSED, GateEvent.REFUSED): "closed",
        (GateState.CLOSED, GateEvent.DUE): "probing",
        (GateState.PROBING, GateEvent.REFUSED): "closed",
        (GateState.PROBING, GateEvent.INCONCLUSIVE): "closed",
        (GateState.PROBING, GateEvent.LET_THROUGH): "ramping",
        (GateState.RAMPING, GateEvent.REFUSED): "closed",
        (GateState.RAMPING, GateEvent.RAMPED): "open",
    }


def test_an_open_gate_lets_everybody_pass_with_the_same_object() -> None:
    """A gate that was never closed costs no allocation."""
    gate = Gate()
    first = passed(gate, 0.0)
    assert all(passed(gate, 0.0) is first for _ in range(100))
    for throttled in (False, None):
        assert not gate.settle(first, throttled, 0.0)
    assert (gate.state(0.0), gate.until, gate.closed_for(0.0)) == (GateState.OPEN, -math.inf, 0.0)


# --- Closing --------------------------------------------------------------------------------------


def test_a_closed_gate_waits_for_the_asked_time() -> None:
    """Never earlier than asked; the first to ask waits no longer, but for the spread."""
    gate = closed(20.0)
    assert (gate.state(5.0), gate.until, gate.closed_for(5.0)) == (GateState.CLOSED, 20.0, 15.0)
    assert wait(gate, 5.0) == 15.0
    assert (gate.closed_for(20.0), gate.closed_for(21.0)) == (0.0, 0.0)


def test_litellm_40130_the_later_time_counts() -> None:
    """A second, shorter refusal kept the shorter deadline; the deadline is the maximum."""
    gate = closed(20.0)
    assert not gate.close(1.0, 5.0)
    assert gate.until == 20.0
    assert not gate.close(1.0, 30.0)
    assert (gate.until, gate.generation) == (31.0, 1)


@pytest.mark.parametrize("seconds", [86_401.0, 1e12, math.inf])
def test_an_absurd_time_is_clamped_to_a_day(seconds: float) -> None:
    """A slip of a unit must not shut an upstream out for good."""
    assert closed(seconds).until == MAX_CLOSED


@pytest.mark.parametrize("seconds", [None, 0.0, -1.0, -math.inf, math.nan])
def test_without_an_asked_time_an_open_gate_stays_open(seconds: float | None) -> None:
    """One stray 429 is no reason to hold up everybody; a gate in doubt closes, though."""
    gate = Gate()
    assert not gate.close(0.0, seconds)
    assert not gate.settle(passed(gate, 0.0), True, 0.0)
    assert (gate.state(0.0), gate.generation) == (GateState.OPEN, 0)
    gate = ramping(20.0)
    assert gate.close(20.0, seconds)
    assert gate.until == 20.0 + FIRST_PAUSE
    assert not gate.close(20.5, seconds)
    assert gate.until == 20.0 + FIRST_PAUSE


def test_pauses_double_with_each_refusal_in_a_row() -> None:
    """1, 2, 4 ... 60 s while every probe is refused without a hint."""
    gate, pauses = closed(20.0), []
    for _ in range(9):
        now = gate.until
        assert gate.settle(passed(gate, now), True, now)
        pauses.append(gate.until - now)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_calls_under_way_together_hear_the_same_refusal() -> None:
    """Thirty refusals of one moment close the gate once, and lengthen no pause."""
    gate = ramping(20.0)
    passes = [passed(gate, 24.0) for _ in range(30)]
    assert [gate.settle(each, True, 24.0) for each in passes] == [True] + [False] * 29
    assert (gate.until, gate.generation) == (24.0 + FIRST_PAUSE, 2)


def test_a_late_refusal_of_an_older_generation_is_no_news() -> None:
    """Its call went out before the gate closed; the probe knows better."""
    gate = Gate()
    late = passed(gate, 0.0)
    gate.close(0.0, 20.0)
    probe = passed(gate, 20.0)
    assert not gate.settle(late, True, 20.0)
    assert gate.state(20.0) is GateState.PROBING
    gate.settle(probe, False, 20.0)
    assert not gate.settle(late, True, 21.0)
    assert gate.state(21.0) is GateState.RAMPING


def test_a_refusal_with_a_time_is_told_by_close_first() -> None:
    """Then settling it adds nothing."""
    gate = Gate()
    mine = passed(gate, 0.0)
    assert gate.close(0.0, 7.0)
    assert not gate.settle(mine, True, 0.0)
    assert (gate.until, gate.generation) == (7.0, 1)


# --- Waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "jitter", "latest"),
    [(20.0, 0.999_999, 21.0), (2.0, 0.999_999, 2.2), (600.0, 0.5, 600.5), (20.0, 0.0, 20.0)],
)
def test_the_spread_is_a_tenth_but_at_most_a_second(
    left: float, jitter: float, latest: float
) -> None:
    """For whoever asks first."""
    assert wait(closed(left), 0.0, jitter) == pytest.approx(latest, abs=1e-5)


def test_waiters_are_given_times_as_the_ramp_would_admit_them() -> None:
    """One at the asked time, and twice as many each second."""
    gate = closed(20.0)
    waits = [wait(gate, 0.0) for _ in range(1000)]
    assert waits == sorted(waits)
    for second in range(8):
        due = sum(each <= 20.0 + second for each in waits)
        assert due == min(int(RAMP_START * 2**second - RAMP_START) + 1, 1000)
    assert max(waits) <= 20.0 + RAMP_SECONDS


def test_asking_how_long_takes_no_turn() -> None:
    """`closed_for` is for who will not wait."""
    gate = closed(20.0)
    assert [gate.closed_for(0.0) for _ in range(99)] == [20.0] * 99
    assert wait(gate, 0.0) == 20.0


def test_a_waiter_learns_that_the_gate_was_closed_anew() -> None:
    """After its wait it asks again, and waits again."""
    gate = closed(20.0)
    assert wait(gate, 0.0) == 20.0
    gate.close(19.0, 10.0)
    assert wait(gate, 20.0) == pytest.approx(9.0 + math.log2(1.0 + 1.0 / RAMP_START))


def test_turns_start_anew_with_each_closing() -> None:
    """Who waited last time does not delay those who wait now."""
    gate = closed(20.0)
    for _ in range(100):
        wait(gate, 0.0)
    gate.close(20.0, 5.0)
    assert wait(gate, 20.0) == 5.0


# --- Probing --------------------------------------------------------------------------------------


def test_one_call_goes_ahead() -> None:
    """The others ask again a little later, not all at once."""
    gate = closed(20.0)
    assert gate.state(20.0) is GateState.PROBING
    passed(gate, 20.0)
    assert gate.state(20.0) is GateState.PROBING
    assert wait(gate, 20.1, 0.0) == PROBE_POLL
    assert wait(gate, 20.1, 0.999_999) == pytest.approx(2 * PROBE_POLL, abs=1e-5)
    assert gate.closed_for(21.0) == PROBE_PATIENCE - 1.0


def test_a_refused_probe_closes_the_gate_again() -> None:
    """For the asked time, or a longer pause."""
    gate = closed(20.0)
    assert gate.settle(passed(gate, 20.0), True, 21.0)
    assert (gate.state(21.9), gate.until) == (GateState.CLOSED, 22.0)
    passed(gate, 22.0)
    assert gate.close(22.5, 40.0)
    assert gate.until == 62.5


def test_a_probe_that_tells_nothing_makes_room_for_the_next() -> None:
    """A cancelled probe, or one that met a broken connection."""
    gate = closed(20.0)
    first = passed(gate, 20.0)
    for _ in range(2):
        assert not gate.settle(first, None, 20.5)
    assert (gate.state(20.5), gate.closed_for(20.5)) == (GateState.PROBING, 0.0)
    second = passed(gate, 20.5)
    assert second is not first
    gate.settle(first, False, 20.6)  # settled twice: not the probe any more
    assert gate.state(20.6) is GateState.PROBING


def test_a_probe_out_for_long_was_let_through() -> None:
    """A refusal comes at once; a generation, or a lost permit, does not hold up the others."""
    gate = closed(20.0)
    probe = passed(gate, 20.0)
    wait(gate, 20.0 + PROBE_PATIENCE - 0.01)
    assert gate.state(20.0 + PROBE_PATIENCE) is GateState.RAMPING
    passed(gate, 20.0 + PROBE_PATIENCE)
    assert gate.state(20.0 + PROBE_PATIENCE) is GateState.RAMPING
    assert not gate.settle(probe, False, 25.0)
    assert gate.settle(probe, True, 26.0)  # so late a refusal is news, though
    assert gate.state(26.0) is GateState.CLOSED


# --- Ramping --------------------------------------------------------------------------------------


def test_admissions_double_every_second() -> None:
    """2 at once, 4 after a second, 8 after two ... and then the gate is open."""
    gate, total = ramping(20.0), 0
    for second in range(8):
        while isinstance(gate.admit(20.0 + second, 0.0), Pass):
            total += 1
        assert total == RAMP_START * 2**second
    assert gate.state(20.0 + RAMP_SECONDS) is GateState.OPEN
    passed(gate, 20.0 + RAMP_SECONDS)
    assert gate.state(20.0 + RAMP_SECONDS) is GateState.OPEN


def test_waits_in_the_ramp_are_for_its_next_free_turns() -> None:
    """Each for the time at which the ramp comes to it."""
    gate = closed(20.0)
    for _ in range(100):  # whose turns are over with the closing
        wait(gate, 0.0)
    gate.settle(passed(gate, 20.0), False, 20.0)
    passed(gate, 20.0)
    passed(gate, 20.0)
    waits = [wait(gate, 20.0) for _ in range(1000)]
    assert waits == sorted(waits)
    assert 0.0 < waits[0] <= 0.01
    assert waits[2] == 1.0
    assert waits[6] == 2.0
    assert waits[-1] == RAMP_SECONDS
    assert wait(gate, 20.0, 0.999_999) == pytest.approx(RAMP_SECONDS + 0.1, abs=1e-5)


def test_a_ramping_gate_is_not_closed() -> None:
    """A call might pass."""
    assert ramping().closed_for(20.0) == 0.0


def test_a_refusal_in_the_ramp_closes_the_gate_for_longer() -> None:
    """The row of refusals goes on until the gate was open."""
    gate = ramping(20.0)
    for pause in (1.0, 2.0, 4.0):
        now = gate.until
        gate.settle(passed(gate, now), False, now)
        assert gate.settle(passed(gate, now), True, now)
        assert gate.until == now + pause


def test_a_ramp_that_is_over_is_over_though_nobody_came() -> None:
    """What only waits for a call to happen has happened."""
    gate = ramping(20.0)
    assert not gate.close(20.0 + RAMP_SECONDS)
    assert gate.close(100.0, 5.0)
    assert gate.settle(passed(gate, 105.0), True, 105.0)
    assert gate.until == 105.0 + FIRST_PAUSE


def test_an_open_gate_begins_a_new_row_of_refusals() -> None:
    """After a whole ramp the next pause is the first again, and the free pass a new one."""
    gate = ramping(20.0)
    free = passed(gate, 20.0 + RAMP_SECONDS)
    assert passed(gate, 30.0) is free
    assert gate.close(30.0, 5.0)
    assert gate.settle(passed(gate, 35.0), True, 35.0)
    assert gate.until == 35.0 + FIRST_PAUSE


# --- Any history ----------------------------------------------------------------------------------


class AnyHistory(RuleBasedStateMachine):
    """Refusals, admissions and results in any order."""

    passes = Bundle("passes")

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.now = 1000.0
        self.asked_until = -math.inf

    def closed(self) -> bool:
        return self.gate.state(self.now) is GateState.CLOSED

    @rule(seconds=st.integers(0, 80).map(lambda eighths: eighths / 8.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        seconds=st.none() | st.integers(-80, 160).map(lambda eighths: eighths / 8.0) | st.just(1e9)
    )
    def close(self, seconds: float | None) -> None:
        before, was = self.gate.until, self.gate.state(self.now)
        self.gate.close(self.now, seconds)
        assert self.gate.until >= before
        if seconds is not None and seconds > 0.0:
            assert self.gate.closed_for(self.now) > 0.0
            self.asked_until = max(self.asked_until, self.now + min(seconds, MAX_CLOSED))
        elif was is GateState.OPEN:
            assert self.gate.state(self.now) is GateState.OPEN

    @rule(target=passes, jitter=st.floats(0.0, 0.999))
    def admit(self, jitter: float) -> Pass | None:
        left = self.gate.closed_for(self.now) if self.closed() else 0.0
        admission = self.gate.admit(self.now, jitter)
        if isinstance(admission, Pass):
            assert self.now >= self.asked_until
            assert left == 0.0
            return admission
        longest = left + min(0.1 * left, 1.0) + RAMP_SECONDS + PROBE_POLL
        assert 0.0 < admission.seconds <= longest
        assert admission.seconds >= left
        return None

    @rule(admission=passes, throttled=st.none() | st.booleans())
    def settle(self, admission: Pass | None, throttled: bool | None) -> None:
        if admission is not None:
            before = self.gate.generation
            closed_it = self.gate.settle(admission, throttled, self.now)
            assert closed_it == (self.gate.generation > before)
            assert throttled or not closed_it

    @invariant()
    def it_opens_by_itself_when_nobody_is_refused(self) -> None:
        assert self.gate.closed_for(max(self.now, self.gate.until) + PROBE_PATIENCE) == 0.0

    @invariant()
    def it_is_closed_until_the_asked_time(self) -> None:
        if self.now < self.asked_until:
            assert self.closed()
            assert self.gate.closed_for(self.now) >= self.asked_until - self.now


AnyHistory.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestAnyHistory = AnyHistory.TestCase
