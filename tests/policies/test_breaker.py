"""The circuit breaker, and what the bugs of other breakers teach."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from steer_policies.breaker import (
    PROBE_LIFE,
    PROBE_POLL,
    TRANSITIONS,
    Breaker,
    Event,
    Permit,
    PermitPair,
    Rejected,
    State,
    Transition,
    acquire_both,
    settle_both,
)
from steer_policies.config import BreakerPolicy, FailureCount
from steer_policies.outcome import TRAITS, Failure, Vote

OK, BAD, NONE = Vote.SUCCESS, Vote.FAILURE, Vote.NONE
MIDDLE = 0.5  # the jitter that leaves a duration as it is


def permit(breaker: Breaker, now: float) -> Permit:
    taken = breaker.acquire(now)
    assert isinstance(taken, Permit)
    return taken


def rejected(breaker: Breaker, now: float) -> float:
    refusal = breaker.acquire(now)
    assert isinstance(refusal, Rejected)
    return refusal.retry_in


def call(
    breaker: Breaker, vote: Vote, now: float = 0.0, seconds: float | None = None
) -> Transition | None:
    return breaker.settle(permit(breaker, now), vote, now, MIDDLE, seconds)


def tripped(policy: BreakerPolicy | None = None, now: float = 0.0) -> Breaker:
    """A breaker that opened at `now`, for 30 s unless the policy says otherwise."""
    policy = policy or BreakerPolicy()
    breaker = Breaker(policy)
    for _ in range(policy.failure_threshold):
        call(breaker, BAD, now)
    assert breaker.state(now) is State.OPEN
    return breaker


# --- The table ------------------------------------------------------------------------------------


def test_the_whole_machine() -> None:
    """Four transitions, and no others."""
    assert dict(TRANSITIONS) == {
        (State.CLOSED, Event.TRIPPED): State.OPEN,
        (State.OPEN, Event.DUE): State.HALF_OPEN,
        (State.HALF_OPEN, Event.RELAPSED): State.OPEN,
        (State.HALF_OPEN, Event.RECOVERED): State.CLOSED,
    }


def test_a_whole_life() -> None:
    """Closed, tripped, refused, due, probed, closed again; each transition says what happened."""
    breaker = Breaker(BreakerPolicy(failure_threshold=2))
    assert (breaker.state(0.0), breaker.retry_in(0.0)) == (State.CLOSED, 0.0)
    assert call(breaker, BAD, 1.0) is None
    assert call(breaker, BAD, 2.0) == Transition(
        State.CLOSED, State.OPEN, "consecutive failures: 2", 1, 32.0, 2, 2
    )
    assert (breaker.state(31.0), breaker.retry_in(31.0)) == (State.OPEN, 1.0)
    assert rejected(breaker, 31.0) == 1.0
    assert (breaker.state(32.0), breaker.retry_in(32.0)) == (State.HALF_OPEN, 0.0)
    probe = permit(breaker, 33.0)
    assert probe.transition == Transition(
        State.OPEN, State.HALF_OPEN, "the open duration is over", 2, None, 2, 2
    )
    assert breaker.state(33.0) is State.HALF_OPEN
    assert breaker.settle(probe, OK, 34.0, MIDDLE) == Transition(
        State.HALF_OPEN, State.CLOSED, "successful probes: 1", 3, None, 2, 2
    )
    assert (breaker.state(34.0), breaker.generation, breaker.failures) == (State.CLOSED, 3, 0)


# --- Tripping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1, 3, 5])
def test_it_trips_on_consecutive_failures(threshold: int) -> None:
    """Exactly at the threshold, no matter how few calls there were (Envoy's consecutive_5xx)."""
    breaker = Breaker(BreakerPolicy(failure_threshold=threshold))
    for count in range(1, threshold):
        assert call(breaker, BAD) is None
        assert breaker.failures == count
    transition = call(breaker, BAD)
    assert transition is not None
    assert transition.to_state is State.OPEN


def test_a_success_ends_a_row_of_failures() -> None:
    """Consecutive means consecutive."""
    breaker = Breaker(BreakerPolicy(failure_threshold=2, min_calls=100))
    for vote in [BAD, OK] * 10:
        assert call(breaker, vote) is None


def test_failures_in_the_window_may_be_apart() -> None:
    """Where the window is counted, a success between failures changes nothing."""
    policy = BreakerPolicy(
        failure_threshold=3, failure_count=FailureCount.WINDOW, window=100.0, min_calls=1000
    )
    breaker = Breaker(policy)
    for now, vote in enumerate([BAD, OK, OK, BAD, OK]):
        assert call(breaker, vote, float(now)) is None
    transition = call(breaker, BAD, 5.0)
    assert transition is not None
    assert transition.reason == "failures in the window: 3"
    assert transition.to_state is State.OPEN


def test_failures_before_the_window_are_forgotten() -> None:
    """Even consecutive ones, where the window is counted."""
    policy = BreakerPolicy(
        failure_threshold=3, failure_count=FailureCount.WINDOW, window=10.0, min_calls=1000
    )
    breaker = Breaker(policy)
    for now in (0.0, 20.0, 40.0, 60.0, 61.0):
        assert call(breaker, BAD, now) is None
    assert call(breaker, BAD, 62.0) is not None


def test_no_vote_neither_counts_nor_ends_a_row() -> None:
    """A cancelled call between two failures is as if it had never been."""
    breaker = Breaker(BreakerPolicy(failure_threshold=2))
    assert [call(breaker, vote) for vote in [BAD, NONE]] == [None, None]
    assert call(breaker, BAD) is not None


@pytest.mark.parametrize(
    ("votes", "trips"),
    [
        pytest.param([OK, BAD] * 4 + [OK], False, id="below min_calls"),
        pytest.param([OK, BAD] * 5, True, id="at min_calls and the rate"),
        pytest.param([OK, OK, BAD] * 8, False, id="below the rate"),
        pytest.param([BAD, OK] * 5, False, id="a success does not trip"),
        pytest.param([BAD, OK] * 5 + [BAD], True, id="the failure after it does"),
    ],
)
def test_it_trips_on_the_rate_of_enough_calls(votes: list[Vote], trips: bool) -> None:
    """At least min_calls within the window, and the share of failures reached."""
    breaker = Breaker(BreakerPolicy(failure_threshold=99, min_calls=10, failure_rate=0.5))
    results = [call(breaker, vote) for vote in votes]
    assert results[:-1] == [None] * (len(votes) - 1)
    assert (results[-1] is not None) is trips


def test_the_rate_is_reached_exactly() -> None:
    """3 of 30 is 10 %, though 0.1 * 30 is more than 3 in binary."""
    breaker = Breaker(BreakerPolicy(failure_threshold=99, min_calls=30, failure_rate=0.1))
    assert [call(breaker, vote) for vote in [OK] * 27 + [BAD] * 2] == [None] * 29
    transition = call(breaker, BAD)
    assert transition is not None
    assert transition.reason == "failed: 3 of 30 calls"


def test_old_calls_leave_the_window() -> None:
    """Failures a window ago say nothing about the rate now."""
    breaker = Breaker(BreakerPolicy(failure_threshold=99, min_calls=10, window=60.0))
    for _ in range(9):
        call(breaker, BAD, 0.0)
    assert call(breaker, BAD, 61.0) is None


@pytest.mark.parametrize(
    ("seconds", "trips"), [(None, False), (9.9, False), (10.0, False), (10.1, True)]
)
def test_a_slow_success_counts_as_a_failure_when_asked_for(
    seconds: float | None, trips: bool
) -> None:
    """resilience4j's slow calls."""
    breaker = Breaker(BreakerPolicy(failure_threshold=1, slow_call=10.0))
    assert (call(breaker, OK, 0.0, seconds) is not None) is trips


def test_slowness_is_no_vote_of_its_own() -> None:
    """A slow call without a vote stays without one; without slow_call nothing is slow."""
    assert call(Breaker(BreakerPolicy(failure_threshold=1, slow_call=1.0)), NONE, 0.0, 99.0) is None
    assert call(Breaker(BreakerPolicy(failure_threshold=1)), OK, 0.0, 1e9) is None


# --- Open durations -------------------------------------------------------------------------------


def reopen(breaker: Breaker, jitter: float = MIDDLE) -> float:
    """Let a probe fail as soon as one is admitted; the duration of the opening that follows."""
    now = breaker.retry_in(0.0)
    transition = breaker.settle(permit(breaker, now), BAD, now, jitter)
    assert transition is not None
    assert transition.reason == "a probe failed"
    assert transition.until is not None
    return transition.until - now


def test_the_open_duration_doubles_up_to_its_maximum() -> None:
    """30, 60, 120, 240, 300, 300 ... as Envoy's ejections grow."""
    breaker = tripped()
    assert breaker.retry_in(0.0) == 30.0
    assert [reopen(breaker) for _ in range(5)] == pytest.approx([60, 120, 240, 300, 300])


def test_the_open_duration_starts_anew_once_closed() -> None:
    """The next outage is another one."""
    breaker = tripped()
    reopen(breaker)
    call(breaker, OK, 90.0)
    for _ in range(5):
        call(breaker, BAD, 100.0)
    assert breaker.retry_in(100.0) == pytest.approx(30.0)


@pytest.mark.parametrize(("jitter", "duration"), [(0.0, 24.0), (0.5, 30.0), (0.999_999, 36.0)])
def test_the_open_duration_is_spread_by_a_fifth(jitter: float, duration: float) -> None:
    """So that a fleet of sidecars does not probe in step."""
    breaker = Breaker(BreakerPolicy(failure_threshold=1))
    breaker.settle(permit(breaker, 0.0), BAD, 0.0, jitter)
    assert breaker.retry_in(0.0) == pytest.approx(duration, abs=0.001)


def test_the_spread_does_not_exceed_the_maximum() -> None:
    """max_open_duration is what it says."""
    breaker = tripped(BreakerPolicy(open_duration=300.0))
    assert reopen(breaker, jitter=0.999) == 300.0


# --- Half-open ------------------------------------------------------------------------------------


def test_half_open_admits_its_probes_and_no_more() -> None:
    """The rest is told to ask again soon."""
    breaker = tripped(BreakerPolicy(probes=2))
    permit(breaker, 30.0)
    second = permit(breaker, 31.0)
    assert rejected(breaker, 31.0) == PROBE_POLL
    breaker.settle(second, NONE, 32.0, MIDDLE)
    permit(breaker, 32.0)
    assert rejected(breaker, 32.0) == PROBE_POLL


def test_it_closes_after_enough_successes() -> None:
    """success_threshold counts over probes one after another, too."""
    breaker = tripped(BreakerPolicy(success_threshold=3))
    assert call(breaker, OK, 30.0) is None
    assert call(breaker, NONE, 31.0) is None
    assert call(breaker, OK, 32.0) is None
    transition = call(breaker, OK, 33.0)
    assert transition is not None
    assert transition.reason == "successful probes: 3"


def test_one_failed_probe_reopens() -> None:
    """Whatever succeeded before it in this half-open time."""
    breaker = tripped(BreakerPolicy(success_threshold=2))
    assert call(breaker, OK, 30.0) is None
    transition = call(breaker, BAD, 31.0)
    assert transition is not None
    assert (transition.to_state, transition.until) == (State.OPEN, 91.0)


def test_successes_before_a_relapse_do_not_count_after_it() -> None:
    """Each half-open time counts from nothing."""
    breaker = tripped(BreakerPolicy(success_threshold=2))
    call(breaker, OK, 30.0)
    call(breaker, BAD, 31.0)
    assert call(breaker, OK, 91.0) is None


def test_a_slow_probe_is_a_failed_one() -> None:
    """Trip and probe judge alike."""
    breaker = tripped(BreakerPolicy(slow_call=10.0))
    transition = call(breaker, OK, 30.0, seconds=11.0)
    assert transition is not None
    assert transition.to_state is State.OPEN


@pytest.mark.parametrize(
    ("open_duration", "life"), [(30.0, PROBE_LIFE), (60.0, 60.0), (90.0, 90.0)]
)
def test_a_lost_probe_holds_its_place_for_a_bounded_time(open_duration: float, life: float) -> None:
    """After the open duration or 60 s, whichever is longer, another call is admitted."""
    breaker = tripped(BreakerPolicy(open_duration=open_duration))
    since = open_duration
    permit(breaker, since)
    assert rejected(breaker, since + life - 0.25) == pytest.approx(0.25)
    permit(breaker, since + life)
    assert rejected(breaker, since + life) == PROBE_POLL


def test_a_probe_that_outlived_its_place_still_votes() -> None:
    """What it found is news of this half-open time, and it frees no place it no longer holds."""
    for vote, state in [(OK, State.CLOSED), (BAD, State.OPEN), (NONE, State.HALF_OPEN)]:
        breaker = tripped()
        late = permit(breaker, 30.0)
        permit(breaker, 90.0)
        breaker.settle(late, vote, 91.0, MIDDLE)
        assert breaker.state(91.0) is state
        assert vote is not NONE or rejected(breaker, 91.0) == PROBE_POLL


# --- Bugs of others -------------------------------------------------------------------------------


def test_settling_twice_is_a_no_op() -> None:
    """A `finally` may follow an explicit settling."""
    breaker = Breaker(BreakerPolicy(failure_threshold=2))
    taken = permit(breaker, 0.0)
    assert [breaker.settle(taken, BAD, 0.0, MIDDLE) for _ in range(5)] == [None] * 5
    assert breaker.failures == 1
    breaker = tripped(BreakerPolicy(success_threshold=2))
    probe = permit(breaker, 30.0)
    assert [breaker.settle(probe, OK, 30.0, MIDDLE) for _ in range(5)] == [None] * 5


def test_resilience4j_544_an_ignored_error_gives_its_permit_back() -> None:
    """An ignored error in half-open kept its permit for ever."""
    breaker = tripped()
    for now in (30.0, 31.0, 32.0):
        assert call(breaker, NONE, now) is None
    assert breaker.state(32.0) is State.HALF_OPEN


def test_resilience4j_2324_nothing_that_can_raise_stands_between_call_and_permit() -> None:
    """A raising predicate leaked the permit; here votes are values, and every one gives it back."""
    for vote in Vote:
        breaker = tripped(BreakerPolicy(success_threshold=2))
        call(breaker, vote, 30.0)
        assert not isinstance(breaker.acquire(30.0 + 60.0), Rejected)


def test_monix_1080_a_cancelled_probe_gives_its_permit_back() -> None:
    """A cancelled probe left the breaker half-open with no place for another."""
    assert TRAITS[Failure.CANCELLED].model_vote is NONE
    assert TRAITS[Failure.CANCELLED].upstream_vote is NONE
    breaker = tripped()
    call(breaker, TRAITS[Failure.CANCELLED].model_vote, 30.0)
    assert call(breaker, OK, 30.0) is not None


def test_a_4xx_in_half_open_gives_its_permit_back_and_closes() -> None:
    """A 4xx that records nothing leaked; besides, it proves that the upstream is alive."""
    breaker = tripped()
    transition = call(breaker, TRAITS[Failure.REJECTED].model_vote, 30.0)
    assert transition is not None
    assert transition.to_state is State.CLOSED


def test_omniroute_13836_a_probe_that_never_settles_does_not_wedge() -> None:
    """However many are lost, one more is admitted each PROBE_LIFE."""
    breaker = tripped()
    for lost in range(5):
        permit(breaker, 30.0 + lost * PROBE_LIFE)
    assert call(breaker, OK, 30.0 + 5 * PROBE_LIFE) is not None


def test_opossum_276_a_probe_decides_below_the_volume_threshold() -> None:
    """An early return below min_calls left the half-open state undecided."""
    breaker = tripped(BreakerPolicy(min_calls=1000))
    transition = call(breaker, BAD, 30.0)
    assert transition is not None
    assert transition.to_state is State.OPEN


def test_polly_216_late_results_of_an_older_generation_do_not_count() -> None:
    """A call that began before the trip returned in half-open and decided it."""
    for vote in Vote:
        breaker = Breaker(BreakerPolicy(failure_threshold=1))
        late = [permit(breaker, 0.0) for _ in range(3)]
        call(breaker, BAD, 0.0)
        assert breaker.settle(late[0], vote, 1.0, MIDDLE) is None  # while open
        probe = permit(breaker, 30.0)
        assert breaker.settle(late[1], vote, 31.0, MIDDLE) is None  # while half-open
        assert rejected(breaker, 31.0) == PROBE_POLL
        breaker.settle(probe, OK, 32.0, MIDDLE)
        assert breaker.settle(late[2], vote, 33.0, MIDDLE) is None  # closed again
        assert (breaker.state(33.0), breaker.failures) == (State.CLOSED, 0)


def test_probes_of_an_older_half_open_time_do_not_count() -> None:
    """The second probe of a time that ended with a relapse comes too late."""
    breaker = tripped(BreakerPolicy(probes=2, open_duration=10.0))
    first, second = permit(breaker, 10.0), permit(breaker, 10.0)
    breaker.settle(first, BAD, 11.0, MIDDLE)
    for _ in range(2):  # nor do they hold a place
        permit(breaker, 31.0)
    assert breaker.settle(second, OK, 32.0, MIDDLE) is None
    assert rejected(breaker, 32.0) == PROBE_POLL


def test_a_failure_while_open_does_not_extend_the_timer() -> None:
    """Calls under way at the trip fail one by one; the outage is not longer for that."""
    breaker = Breaker(BreakerPolicy(failure_threshold=1))
    late = [permit(breaker, 0.0) for _ in range(10)]
    call(breaker, BAD, 0.0)
    for second, taken in enumerate(late):
        breaker.settle(taken, BAD, float(second), MIDDLE)
    assert breaker.retry_in(10.0) == 20.0


def test_polly_8_an_unhandled_outcome_in_half_open_does_not_close() -> None:
    """Excluded means: permit back, no vote."""
    breaker = tripped()
    assert call(breaker, NONE, 30.0) is None
    assert breaker.state(30.0) is State.HALF_OPEN


def test_pybreaker_nothing_is_held_through_a_call() -> None:
    """It held a lock; here any number of calls are under way at once."""
    breaker = Breaker(BreakerPolicy())
    taken = [permit(breaker, 0.0) for _ in range(1000)]
    for each in reversed(taken):
        breaker.settle(each, OK, 1.0, MIDDLE)
    assert breaker.state(1.0) is State.CLOSED


def test_litellm_40130_opening_again_only_extends() -> None:
    """Re-cooling kept the shorter deadline; the deadline is the maximum."""
    breaker = tripped()
    ends = [breaker.retry_in(0.0)]
    for _ in range(6):
        reopen(breaker, jitter=0.0)
        ends.append(breaker.retry_in(0.0))
    assert ends == sorted(ends)


@pytest.mark.parametrize(
    "failure", [Failure.DEADLINE, Failure.CANCELLED, Failure.QUEUE, Failure.CONTENT_POLICY]
)
def test_litellm_41223_5225_what_is_not_the_upstreams_fault_does_not_trip(failure: Failure) -> None:
    """A caller's own time-out and a content-policy refusal cooled whole deployments."""
    breaker = Breaker(BreakerPolicy(failure_threshold=1, min_calls=1))
    for vote in (TRAITS[failure].model_vote, TRAITS[failure].upstream_vote):
        assert call(breaker, vote) is None


def test_litellm_27823_a_rejection_always_says_when() -> None:
    """All were cooled and no Retry-After was sent; here, who comes at that time gets a permit."""
    breaker = tripped()
    wait = rejected(breaker, 12.5)
    assert wait == 17.5
    permit(breaker, 12.5 + wait)
    assert 0.0 < rejected(breaker, 31.0) <= PROBE_POLL


def test_the_window_is_cleared_on_close() -> None:
    """Else the first failure after an outage would trip on the outage's own failures."""
    breaker = tripped(BreakerPolicy(failure_threshold=20, min_calls=20, window=600.0))
    call(breaker, OK, 30.0)
    assert call(breaker, BAD, 31.0) is None


# --- Two breakers ---------------------------------------------------------------------------------


def test_both_permits_are_taken_and_given_back() -> None:
    """Each breaker hears its own vote."""
    model, upstream = Breaker(BreakerPolicy()), Breaker(BreakerPolicy())
    pair = acquire_both(model, upstream, 0.0)
    assert isinstance(pair, PermitPair)
    assert pair.transitions == ()
    assert settle_both(pair, BAD, OK, 0.0, MIDDLE) == ()
    assert (model.failures, upstream.failures) == (1, 0)
    assert settle_both(pair, BAD, BAD, 0.0, MIDDLE) == ()
    assert (model.failures, upstream.failures) == (1, 0)


@pytest.mark.parametrize(
    ("model_opened", "upstream_opened", "retry_in"),
    [(0.0, None, 30.0), (None, 0.0, 30.0), (0.0, -10.0, 30.0), (-10.0, 0.0, 30.0)],
)
def test_either_breaker_rejects_for_both(
    model_opened: float | None, upstream_opened: float | None, retry_in: float
) -> None:
    """Until the later of the two is due."""
    model, upstream = (
        Breaker(BreakerPolicy()) if opened is None else tripped(now=opened)
        for opened in (model_opened, upstream_opened)
    )
    assert acquire_both(model, upstream, 0.0) == Rejected(retry_in)


def test_a_rejection_by_one_leaks_no_probe_of_the_other() -> None:
    """Whichever of the two refuses, the other is as it was before it was asked."""
    for due_first in (True, False):
        due, open_still = tripped(now=-30.0), tripped(now=0.0)
        both = (due, open_still) if due_first else (open_still, due)
        for _ in range(10):
            assert acquire_both(*both, 0.0) == Rejected(30.0)
        assert due.generation == 1
        assert call(due, OK, 0.0) is not None


def test_the_transitions_of_both_are_reported() -> None:
    """Both half-open on acquiring, both settled by their own vote."""
    model, upstream = tripped(), tripped()
    pair = acquire_both(model, upstream, 30.0)
    assert isinstance(pair, PermitPair)
    assert [each.to_state for each in pair.transitions] == [State.HALF_OPEN] * 2
    assert acquire_both(model, upstream, 30.0) == Rejected(PROBE_POLL)
    settled = settle_both(pair, BAD, OK, 31.0, MIDDLE)
    assert [each.to_state for each in settled] == [State.OPEN, State.CLOSED]


@pytest.mark.parametrize(
    ("model_opened", "upstream_opened"), list(product([True, False], repeat=2))
)
def test_a_probe_of_either_breaker_is_one_of_the_pair(
    model_opened: bool, upstream_opened: bool
) -> None:
    """Such a call is settled as soon as it tells, not when its stream has ended."""
    model, upstream = (
        tripped() if opened else Breaker(BreakerPolicy())
        for opened in (model_opened, upstream_opened)
    )
    pair = acquire_both(model, upstream, 30.0)
    assert isinstance(pair, PermitPair)
    assert pair.probe == (model_opened or upstream_opened)


def test_one_of_two_may_change() -> None:
    """Only what changed is reported."""
    model, upstream = Breaker(BreakerPolicy(failure_threshold=1)), Breaker(BreakerPolicy())
    pair = acquire_both(model, upstream, 0.0)
    assert isinstance(pair, PermitPair)
    assert len(settle_both(pair, BAD, OK, 0.0, MIDDLE)) == 1


def test_a_slow_model_does_not_slow_its_upstream() -> None:
    """How long a generation took is the model's affair."""
    policy = BreakerPolicy(failure_threshold=1, slow_call=1.0)
    model, upstream = Breaker(policy), Breaker(policy)
    pair = acquire_both(model, upstream, 0.0)
    assert isinstance(pair, PermitPair)
    settle_both(pair, OK, OK, 5.0, MIDDLE, seconds=5.0)
    assert (model.state(5.0), upstream.state(5.0)) == (State.OPEN, State.CLOSED)


# --- Any history ----------------------------------------------------------------------------------


class AnyHistory(RuleBasedStateMachine):
    """Calls in any order against a plain model of what a breaker is."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.policy = BreakerPolicy(
            failure_threshold=3,
            min_calls=10**6,  # the rate is tested above; the model counts rows of failures
            probes=2,
            success_threshold=2,
            open_duration=10.0,
            max_open_duration=40.0,
        )
        self.breaker = Breaker(self.policy)
        self.now = 1000.0
        self.state, self.generation = State.CLOSED, 0
        self.row = self.successes = 0
        self.probes: list[tuple[Permit, float]] = []
        self.settled: set[int] = set()
        self.until = 0.0
        self.longest = 0.0

    def moved(self, state: State) -> None:
        assert any(
            (self.state, event) in TRANSITIONS and TRANSITIONS[self.state, event] is state
            for event in Event
        )
        self.state, self.generation = state, self.generation + 1
        self.probes, self.successes = [], 0

    @rule(seconds=st.integers(0, 30).map(float))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=permits)
    def acquire(self) -> Permit | None:
        result = self.breaker.acquire(self.now)
        if self.state is State.OPEN and self.now >= self.until:
            self.moved(State.HALF_OPEN)
        if self.state is State.OPEN:
            assert result == Rejected(self.until - self.now)
            return None
        if self.state is State.HALF_OPEN:
            if len(self.probes) == 2 and self.now - self.probes[0][1] >= PROBE_LIFE:
                self.probes.pop(0)
            if len(self.probes) == 2:
                assert isinstance(result, Rejected)
                assert 0.0 < result.retry_in <= PROBE_POLL
                return None
            assert isinstance(result, Permit)
            self.probes.append((result, self.now))
        assert isinstance(result, Permit)
        return result

    @rule(
        taken=consumes(permits) | permits,
        vote=st.sampled_from(Vote),
        jitter=st.floats(0.0, 0.999),
    )
    def settle(self, taken: Permit | None, vote: Vote, jitter: float) -> None:
        if taken is None:
            return
        before = self.generation
        transition = self.breaker.settle(taken, vote, self.now, jitter)
        if id(taken) not in self.settled and taken.generation == self.generation:
            self.vote(taken, vote)
        self.settled.add(id(taken))
        assert (transition is not None) == (self.generation > before)
        if self.state is State.OPEN and transition is not None:
            assert transition.until is not None
            duration = transition.until - self.now
            assert 8.0 - 1e-6 <= duration <= self.policy.max_open_duration + 1e-6
            assert transition.until >= self.until
            self.until = transition.until

    def vote(self, taken: Permit, vote: Vote) -> None:
        self.probes = [probe for probe in self.probes if probe[0] is not taken]
        if self.state is State.CLOSED:
            if vote is not NONE:
                self.row = self.row + 1 if vote is BAD else 0
            if self.row == self.policy.failure_threshold:
                self.moved(State.OPEN)
        elif vote is BAD:
            self.moved(State.OPEN)
        elif vote is OK:
            self.successes += 1
            if self.successes == self.policy.success_threshold:
                self.moved(State.CLOSED)
                self.row = 0

    @invariant()
    def it_is_where_the_model_is(self) -> None:
        due = self.state is State.OPEN and self.now >= self.until
        assert self.breaker.state(self.now) is (State.HALF_OPEN if due else self.state)
        assert self.breaker.generation == self.generation
        assert self.breaker.failures == self.row

    @invariant()
    def it_is_never_wedged(self) -> None:
        wait = self.breaker.retry_in(self.now)
        assert 0.0 <= wait <= self.policy.max_open_duration
        assert self.breaker.retry_in(self.now + max(wait, PROBE_LIFE) + 0.001) == 0.0

    @invariant()
    def a_refusal_is_foretold(self) -> None:
        if self.breaker.retry_in(self.now) > 0.0:
            assert isinstance(self.breaker.acquire(self.now), Rejected)


AnyHistory.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestAnyHistory = AnyHistory.TestCase


@pytest.mark.parametrize(("model_vote", "upstream_vote"), list(product(Vote, Vote)))
def test_no_pair_of_votes_wedges_two_half_open_breakers(
    model_vote: Vote, upstream_vote: Vote
) -> None:
    """Whatever comes of the probe, both admit another within their longest open duration."""
    model, upstream = tripped(), tripped()
    pair = acquire_both(model, upstream, 30.0)
    assert isinstance(pair, PermitPair)
    settle_both(pair, model_vote, upstream_vote, 31.0, MIDDLE)
    assert isinstance(acquire_both(model, upstream, 331.0), PermitPair)
