"""The decision after a failed attempt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.config import Ambiguous, RetryPolicy
from steer_policies.outcome import (
    SUCCESS,
    TRAITS,
    Elsewhere,
    Executed,
    Failure,
    HintSource,
    RetryHint,
    Verdict,
    failed,
)
from steer_policies.retry import (
    MIN_ATTEMPT_TIME,
    SILENT,
    UNSENT,
    Decision,
    GiveUp,
    Hop,
    RetryIn,
    Standing,
    WaitSource,
    decide,
    when_ambiguous,
)

POLICY = RetryPolicy()  # 3 here, 6 in all; 0.5 s doubling to 30; 60 s of delays; hop after 5 s
ALONE = Standing(
    attempts_here=1,
    attempts_total=1,
    waited=0.0,
    time_left=600.0,
    others=False,
    ambiguous=Ambiguous.RETRY,
    unsent_only=False,
    idempotent_upstream=False,
    retry_allowed=True,
    jitter=0.5,
)
TWO = replace(ALONE, others=True)
KEYED = replace(TWO, ambiguous=Ambiguous.FAIL)

HERE = [failure for failure in Failure if TRAITS[failure].here]
NOT_HERE = [failure for failure in Failure if not TRAITS[failure].here]


def asked(seconds: float, failure: Failure = Failure.THROTTLED) -> Verdict:
    return failed(failure, hint=RetryHint(seconds, HintSource.RETRY_AFTER))


def delay(decision: Decision) -> float:
    assert isinstance(decision, RetryIn)
    return decision.delay


def test_a_success_leaves_nothing_to_decide() -> None:
    """To ask is a mistake of the caller's."""
    with pytest.raises(ValueError, match="nothing to decide"):
        decide(POLICY, SUCCESS, ALONE)


def test_every_source_of_a_hint_is_a_source_of_a_wait() -> None:
    """The ledger's words."""
    for source in HintSource:
        verdict = failed(Failure.THROTTLED, hint=RetryHint(1.0, source))
        decision = decide(POLICY, verdict, ALONE)
        assert isinstance(decision, RetryIn)
        assert decision.source == source.value
    assert {source.value for source in WaitSource} == {
        *("none", "backoff", "retry_after", "reset", "body_hint", "gate", "queue")
    }


@pytest.mark.parametrize("failure", HERE)
def test_what_the_caller_does_not_want_retried(failure: Failure) -> None:
    """It is not tried again here; elsewhere it may be."""
    alone = decide(POLICY, failed(failure), replace(ALONE, unwanted=True))
    assert isinstance(alone, GiveUp)
    assert alone.why == f"retrying after {failure.value} is switched off"
    assert isinstance(decide(POLICY, failed(failure), replace(TWO, unwanted=True)), Hop)


# --- What is retried ------------------------------------------------------------------------------


def test_what_is_retried_here() -> None:
    """408, 409, 425, 429, 5xx, 529, what broke, what was silent: nothing else."""
    assert set(HERE) == {
        *(Failure.CONNECT, Failure.RESET, Failure.PROTOCOL, Failure.TRUNCATED),
        *(Failure.FIRST_BYTE_TIMEOUT, Failure.FIRST_TOKEN_TIMEOUT, Failure.IDLE_TIMEOUT),
        *(Failure.THROTTLED, Failure.OVERLOADED, Failure.SERVER_ERROR, Failure.BUSY),
    }
    for failure in HERE:
        decision = decide(POLICY, failed(failure), ALONE)
        assert isinstance(decision, RetryIn)
        assert (decision.delay, decision.source) == (0.25, WaitSource.BACKOFF)


@pytest.mark.parametrize("failure", NOT_HERE)
def test_what_is_not_retried_here(failure: Failure) -> None:
    """Permanent 429s, credentials, rejected requests, our own limits: not at the same candidate."""
    decision = decide(POLICY, failed(failure), ALONE)
    assert isinstance(decision, GiveUp)
    assert failure.value in decision.why


@pytest.mark.parametrize("failure", NOT_HERE)
def test_what_goes_elsewhere(failure: Failure) -> None:
    """As far as TRAITS allows; whether a candidate fits the failure is in `others`."""
    decision = decide(POLICY, failed(failure), TWO)
    never = TRAITS[failure].elsewhere is Elsewhere.NEVER
    assert isinstance(decision, GiveUp if never else Hop)


def test_a_permanent_429_is_never_waited_for() -> None:
    """insufficient_quota: no waiting mends it, even where the provider names a time."""
    verdict = asked(1.0, Failure.QUOTA)
    assert isinstance(decide(POLICY, verdict, TWO), Hop)
    decision = decide(POLICY, verdict, ALONE)
    assert isinstance(decision, GiveUp)
    assert decision.retry_after == 1.0


def test_an_overloaded_529_is_like_a_503() -> None:
    """Anthropic's 529 is tried again."""
    assert isinstance(decide(POLICY, failed(Failure.OVERLOADED), TWO), RetryIn)


def test_a_prompt_too_long_goes_only_to_a_larger_context() -> None:
    """context_length_exceeded: never the same model again."""
    assert isinstance(decide(POLICY, failed(Failure.CONTEXT_LENGTH), TWO), Hop)
    assert isinstance(decide(POLICY, failed(Failure.CONTEXT_LENGTH), ALONE), GiveUp)


def test_a_content_refusal_is_the_answer_unless_the_route_asks() -> None:
    """Then, and only then, the engine says that there are others."""
    assert isinstance(decide(POLICY, failed(Failure.CONTENT_POLICY), ALONE), GiveUp)
    assert isinstance(decide(POLICY, failed(Failure.CONTENT_POLICY), TWO), Hop)


@pytest.mark.parametrize("failure", sorted(SILENT))
def test_silence_prefers_the_next_candidate(failure: Failure) -> None:
    """A first-byte time-out says that the upstream is silent; alone, it is tried again."""
    assert isinstance(decide(POLICY, failed(failure), TWO), Hop)
    assert isinstance(decide(POLICY, failed(failure), ALONE), RetryIn)


def test_other_failures_are_retried_here_first() -> None:
    """A hiccup is over sooner than another candidate's prompt cache is warm."""
    for failure in set(HERE) - SILENT:
        assert isinstance(decide(POLICY, failed(failure), TWO), RetryIn)


# --- Bounds of attempts ---------------------------------------------------------------------------


def test_attempts_here_are_bounded() -> None:
    """max_attempts counts the first, per candidate."""
    verdict = failed(Failure.SERVER_ERROR)
    assert isinstance(decide(POLICY, verdict, replace(TWO, attempts_here=3)), Hop)
    decision = decide(POLICY, verdict, replace(ALONE, attempts_here=3))
    assert decision == GiveUp("all 3 attempts here are spent")


def test_attempts_in_all_are_bounded() -> None:
    """max_total_attempts counts per call, everywhere."""
    standing = replace(TWO, attempts_here=1, attempts_total=6)
    decision = decide(POLICY, asked(1.0), standing)
    assert decision == GiveUp("all 6 attempts of the call are spent", 1.0)


def test_grpc_a6_an_unsent_request_is_repeated_freely_but_counted() -> None:
    """Every loop has a bound, even that of connections refused."""
    verdict = failed(Failure.CONNECT)
    assert isinstance(decide(POLICY, verdict, replace(KEYED, unsent_only=True)), RetryIn)
    spent = replace(ALONE, attempts_total=6)
    assert isinstance(decide(POLICY, verdict, spent), GiveUp)


def test_an_outage_is_not_amplified() -> None:
    """Finagle's retry budget: no more retries here; elsewhere has a budget of its own."""
    verdict = failed(Failure.SERVER_ERROR)
    assert isinstance(decide(POLICY, verdict, replace(TWO, retry_allowed=False)), Hop)
    decision = decide(POLICY, verdict, replace(ALONE, retry_allowed=False))
    assert decision == GiveUp("the upstream's retry budget is used up")


def test_x_should_retry_false_is_obeyed_here() -> None:
    """The provider speaks for itself, not for others."""
    verdict = failed(Failure.SERVER_ERROR, again=False)
    assert isinstance(decide(POLICY, verdict, TWO), Hop)
    assert decide(POLICY, verdict, ALONE) == GiveUp("the provider says not to retry")


# --- Waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attempts_here", "expected"), [(1, 0.25), (2, 0.5)])
def test_without_a_hint_backoff_grows_per_candidate(attempts_here: int, expected: float) -> None:
    """Full jitter below 0.5 s, then below 1 s; attempts elsewhere do not count."""
    standing = replace(ALONE, attempts_here=attempts_here, attempts_total=4)
    assert delay(decide(POLICY, failed(Failure.SERVER_ERROR), standing)) == expected


@pytest.mark.parametrize(
    ("seconds", "jitter", "expected"),
    [(2.0, 0.0, 2.0), (2.0, 0.5, 2.1), (20.0, 0.5, 20.5), (20.0, 0.0, 20.0), (0.001, 0.5, 0.00105)],
)
def test_a_hint_is_waited_for_and_a_little_more(
    seconds: float, jitter: float, expected: float
) -> None:
    """Never earlier; later by at most a tenth and at most a second."""
    decision = decide(POLICY, asked(seconds), replace(ALONE, jitter=jitter))
    assert delay(decision) == pytest.approx(expected)


def test_a_hint_of_zero_asks_for_nothing() -> None:
    """Our own pace is kept, as the official SDKs keep theirs: no hammering."""
    decision = decide(POLICY, asked(0.0), ALONE)
    assert isinstance(decision, RetryIn)
    assert (decision.delay, decision.source) == (0.25, WaitSource.BACKOFF)
    assert decide(POLICY, asked(0.0), replace(ALONE, attempts_here=3)) == GiveUp(
        "all 3 attempts here are spent", None
    )


@pytest.mark.parametrize(
    ("seconds", "kind"), [(4.9, RetryIn), (5.0, RetryIn), (5.1, Hop), (1e6, Hop)]
)
def test_a_hint_longer_than_hop_after_moves_on(seconds: float, kind: type) -> None:
    """When there is another candidate."""
    assert isinstance(decide(POLICY, asked(seconds), TWO), kind)


def test_a_long_hint_is_waited_for_when_there_is_nobody_else() -> None:
    """If it fits."""
    assert delay(decide(POLICY, asked(40.0), ALONE)) == 40.5


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"time_left": 4.0}, id="the call's deadline"),
        pytest.param({"time_left": 4.04}, id="no time for the attempt itself"),
        pytest.param({"waited": 56.5}, id="the call's delays"),
    ],
)
def test_a_hint_that_does_not_fit_is_not_waited_for(change: dict[str, Any]) -> None:
    """Next candidate, else answer now and pass the delay on."""
    assert isinstance(decide(POLICY, asked(4.0), replace(TWO, **change)), Hop)
    decision = decide(POLICY, asked(4.0), replace(ALONE, **change))
    assert decision == GiveUp("the asked 4 s do not fit the time left", 4.0)


def test_the_spread_gives_way_to_the_deadline() -> None:
    """A hint that just fits is waited for without its spread."""
    room = 4.0 + MIN_ATTEMPT_TIME + 0.01
    assert delay(decide(POLICY, asked(4.0), replace(ALONE, time_left=room))) == pytest.approx(4.01)


@pytest.mark.parametrize("change", [{"time_left": 0.2}, {"waited": 59.9}])
def test_a_backoff_that_does_not_fit_is_not_waited_for(change: dict[str, Any]) -> None:
    """The same rule as for a hint."""
    verdict = failed(Failure.SERVER_ERROR)
    assert isinstance(decide(POLICY, verdict, replace(TWO, **change)), Hop)
    decision = decide(POLICY, verdict, replace(ALONE, **change))
    assert decision == GiveUp("the backoff does not fit the time left")


def test_a_hint_of_more_than_a_day_ends_the_candidate() -> None:
    """However much time there is: never retry early, and never wait for that."""
    patient = RetryPolicy(max_total_delay=1e9, hop_after=1e9)
    verdict = asked(86_401.0)
    assert isinstance(decide(patient, verdict, replace(TWO, time_left=1e9)), Hop)
    decision = decide(patient, verdict, replace(ALONE, time_left=1e9))
    assert decision == GiveUp("the provider asked for more than a day", 86_401.0)


@pytest.mark.parametrize("standing", [ALONE, TWO])
def test_without_time_there_is_nothing_left_to_try(standing: Standing) -> None:
    """Another candidate could not answer in time either."""
    decision = decide(POLICY, asked(1.0), replace(standing, time_left=0.049))
    assert decision == GiveUp("no time is left for another attempt", 1.0)


# --- What may have been executed ------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [each for each in Failure if TRAITS[each].executed is Executed.MAYBE]
)
def test_an_ambiguous_attempt_of_a_keyed_call_is_not_repeated(failure: Failure) -> None:
    """Neither here nor elsewhere: 504, the outcome is uncertain."""
    decision = decide(POLICY, failed(failure), KEYED)
    assert decision == GiveUp("the request may have been executed", None, uncertain=True)


def test_an_executed_attempt_of_a_keyed_call_is_not_repeated() -> None:
    """An answer that was cut was paid for."""
    verdict = failed(Failure.TRUNCATED, executed=Executed.YES)
    assert isinstance(decide(POLICY, verdict, KEYED), GiveUp)


@pytest.mark.parametrize("failure", [Failure.SERVER_ERROR, Failure.THROTTLED, Failure.CONNECT])
def test_a_failure_the_provider_owns_up_to_is_not_ambiguous(failure: Failure) -> None:
    """It answered with a failure, or never got the request: a keyed call goes on."""
    assert isinstance(decide(POLICY, failed(failure), KEYED), RetryIn)


def test_a_post_lost_on_a_reused_connection_is_ambiguous() -> None:
    """Bytes were written: executed = maybe, and the policy decides."""
    verdict = failed(Failure.RESET)
    assert verdict.executed is Executed.MAYBE
    assert isinstance(decide(POLICY, verdict, ALONE), RetryIn)
    assert isinstance(decide(POLICY, verdict, KEYED), GiveUp)


def test_an_upstream_with_the_key_may_be_asked_again() -> None:
    """It knows the call; nobody else does, so there is no hop."""
    keyed = replace(KEYED, idempotent_upstream=True)
    assert isinstance(decide(POLICY, failed(Failure.RESET), keyed), RetryIn)
    assert isinstance(decide(POLICY, failed(Failure.FIRST_BYTE_TIMEOUT), keyed), RetryIn)
    spent = decide(POLICY, failed(Failure.RESET), replace(keyed, attempts_here=3))
    assert spent == GiveUp("all 3 attempts here are spent", None, uncertain=True)


def test_an_earlier_ambiguous_attempt_is_not_forgotten() -> None:
    """A 429 to the second attempt does not undo what the first may have done."""
    keyed = replace(KEYED, idempotent_upstream=True, executed_before=True)
    assert isinstance(decide(POLICY, asked(1.0), keyed), RetryIn)
    decision = decide(POLICY, asked(3600.0), keyed)
    assert isinstance(decision, GiveUp)
    assert (decision.retry_after, decision.uncertain) == (3600.0, True)
    total = decide(POLICY, asked(1.0), replace(keyed, attempts_total=6))
    assert isinstance(total, GiveUp)
    assert total.uncertain


@pytest.mark.parametrize("failure", Failure)
def test_rfc_9110_9_2_2_a_pinned_post_is_repeated_only_when_provably_unsent(
    failure: Failure,
) -> None:
    """A stored object is not created twice."""
    decision = decide(POLICY, failed(failure), replace(ALONE, unsent_only=True))
    assert isinstance(decision, RetryIn) == (failure is Failure.CONNECT)
    assert frozenset({Failure.CONNECT, Failure.QUEUE}) == UNSENT


def test_a_sent_pinned_post_is_not_called_uncertain_unless_asked() -> None:
    """With `ambiguous: retry` the caller hears what happened, not a 504 of ours."""
    decision = decide(POLICY, failed(Failure.RESET), replace(ALONE, unsent_only=True))
    assert decision == GiveUp("the request was sent and is not one to repeat")


# --- Any standing ---------------------------------------------------------------------------------

SECONDS = st.floats(0.0, 1e6) | st.sampled_from([0.0, 0.05, 5.0, 86_400.0])
VERDICTS = st.builds(
    Verdict,
    st.sampled_from(Failure),
    st.sampled_from(Executed),
    st.none() | st.builds(RetryHint, SECONDS, st.sampled_from(HintSource)),
    st.none(),
    st.booleans(),
)
STANDINGS = st.builds(
    Standing,
    attempts_here=st.integers(1, 5),
    attempts_total=st.integers(1, 9),
    waited=st.floats(0.0, 100.0),
    time_left=st.floats(-1.0, 1000.0),
    others=st.booleans(),
    ambiguous=st.sampled_from(Ambiguous),
    unsent_only=st.booleans(),
    idempotent_upstream=st.booleans(),
    retry_allowed=st.booleans(),
    jitter=st.floats(0.0, 0.999),
    executed_before=st.booleans(),
)


@given(VERDICTS, STANDINGS)
def test_no_decision_breaks_a_bound(verdict: Verdict, standing: Standing) -> None:
    """Whatever happened: in time, within the counts, not too early, and not a second execution."""
    decision = decide(POLICY, verdict, standing)
    assert decision.why
    failure = verdict.failure
    assert failure is not None
    hint = verdict.hint.seconds if verdict.hint else 0.0
    ran = verdict.executed is not Executed.NO or standing.executed_before
    keyed = standing.ambiguous is Ambiguous.FAIL
    if isinstance(decision, GiveUp):
        assert decision.retry_after == (hint or None)
        assert decision.uncertain == (ran and keyed)
        return
    assert standing.attempts_total < POLICY.max_total_attempts
    assert standing.time_left >= MIN_ATTEMPT_TIME
    assert not standing.unsent_only or failure in UNSENT
    if isinstance(decision, Hop):
        assert standing.others
        assert not (ran and keyed)
        return
    assert verdict.again
    assert standing.retry_allowed
    assert failure in HERE
    assert not (ran and keyed) or standing.idempotent_upstream
    assert standing.attempts_here < POLICY.max_attempts
    assert hint <= decision.delay <= standing.time_left - MIN_ATTEMPT_TIME
    assert standing.waited + decision.delay <= POLICY.max_total_delay + 1e-9
    assert not standing.others or ran or hint <= POLICY.hop_after


def test_what_a_key_says_of_doubt() -> None:
    """A call that must not be made twice is not repeated in doubt, unless that is configured."""
    assert when_ambiguous(None, once=True) is Ambiguous.FAIL
    assert when_ambiguous(None, once=False) is Ambiguous.RETRY
    for configured in Ambiguous:
        for once in (True, False):
            assert when_ambiguous(configured, once=once) is configured
