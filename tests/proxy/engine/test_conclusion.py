"""Which answer the caller gets when no attempt succeeded."""

from __future__ import annotations

import pytest

from steer_policies.config import DialectName, UpstreamPolicy
from steer_policies.outcome import Executed, Failure, HintSource, RetryHint, Verdict, failed
from steer_policies.plan import Candidate
from steer_policies.retry import WaitSource
from steer_proxy.engine.attempt import AttemptRecord
from steer_proxy.engine.conclusion import Best, Reason, Refusal, Spent, conclude


class FailedAnswer:
    """An answer as the engine sees it."""

    def __init__(
        self,
        failure: Failure,
        status: int | None,
        hint: float | None = None,
        *,
        broken: bool = False,
    ) -> None:
        given = None if hint is None else RetryHint(hint, HintSource.RETRY_AFTER)
        self.verdict: Verdict = failed(failure, hint=given)
        self.lesson: Verdict | None = self.verdict
        self.status = status
        self.broken = broken
        self.discarded = False

    async def discard(self) -> None:
        """Remember that it was let go."""
        self.discarded = True


HOME = UpstreamPolicy(name="home", dialect=DialectName.OPENAI)
OTHER = UpstreamPolicy(name="other", dialect=DialectName.OPENAI, own_credential=True)


async def best_of(*offers: tuple[FailedAnswer, UpstreamPolicy, int]) -> Best[FailedAnswer]:
    """Offer answers in this order, at second 100."""
    best: Best[FailedAnswer] = Best()
    for answer, policy, index in offers:
        await best.offer(answer, Candidate(policy.name, "m"), policy, index, 100.0)
    return best


async def test_the_primarys_answer_stands_for_all() -> None:
    """Two providers were overloaded: the caller hears the one it meant to call."""
    home, other = FailedAnswer(Failure.OVERLOADED, 503), FailedAnswer(Failure.OVERLOADED, 529)
    best = await best_of((home, HOME, 0), (other, OTHER, 1))
    assert best.answer is home
    assert other.discarded
    assert not home.discarded


async def test_a_word_on_the_request_itself_wins() -> None:
    """A fallback's 400 tells the caller more than the primary's 503."""
    home, other = FailedAnswer(Failure.OVERLOADED, 503), FailedAnswer(Failure.REJECTED, 400)
    best = await best_of((home, HOME, 0), (other, OTHER, 1))
    assert best.answer is other
    assert home.discarded


async def test_another_candidates_401_is_never_shown() -> None:
    """Better no answer than one about a credential the caller does not know."""
    other = FailedAnswer(Failure.CREDENTIAL, 401)
    best = await best_of((other, OTHER, 1))
    assert best.answer is None
    assert other.discarded


async def test_the_callers_own_401_is_shown() -> None:
    """The home upstream speaks of the caller's own key."""
    home = FailedAnswer(Failure.CREDENTIAL, 401)
    assert (await best_of((home, HOME, 0))).answer is home


async def test_the_latest_of_equals_is_kept() -> None:
    """Of several attempts at the primary the last one's answer is the freshest."""
    one, two = FailedAnswer(Failure.THROTTLED, 429, 5), FailedAnswer(Failure.THROTTLED, 429, 9)
    best = await best_of((one, HOME, 0), (two, HOME, 0))
    assert best.answer is two
    settled = conclude(best, Spent(), [], 103.0)
    assert settled.retry_after == pytest.approx(6.0)
    assert settled.sdk_retry is False


async def test_a_whole_answer_is_kept_before_one_that_was_cut() -> None:
    """The provider's own words say more than a status, whoever's and whenever they came."""

    def answers() -> tuple[FailedAnswer, FailedAnswer]:
        return FailedAnswer(Failure.OVERLOADED, 500), FailedAnswer(
            Failure.OVERLOADED, 500, broken=True
        )

    whole, cut = answers()
    assert (await best_of((whole, HOME, 0), (cut, HOME, 0))).answer is whole
    assert cut.discarded
    assert not whole.discarded
    whole, cut = answers()
    assert (await best_of((cut, HOME, 0), (whole, OTHER, 1))).answer is whole
    assert cut.discarded
    assert not whole.discarded


async def test_an_answer_that_was_cut_is_better_than_none() -> None:
    """Unless nobody may see it."""
    cut = FailedAnswer(Failure.OVERLOADED, 500, broken=True)
    hidden, headless = FailedAnswer(Failure.CREDENTIAL, 401), FailedAnswer(Failure.RESET, None)
    best = await best_of((cut, HOME, 0), (hidden, OTHER, 1), (headless, OTHER, 1))
    assert best.answer is cut


async def test_an_attempt_without_a_head_is_no_answer() -> None:
    """A reset has nothing to show."""
    assert (await best_of((FailedAnswer(Failure.RESET, None), HOME, 0))).answer is None


def record(failure: Failure, executed: Executed | None = None) -> AttemptRecord:
    """One failed attempt."""
    verdict = failed(failure, executed=executed)
    return AttemptRecord(1, "home", "m", 0.0, 1.0, 0.0, WaitSource.NONE, None, verdict)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Failure.CONNECT, 502, "steer_upstream_unreachable"),
        (Failure.RESET, 502, "steer_upstream_broken"),
        (Failure.TRUNCATED, 502, "steer_upstream_broken"),
        (Failure.PROTOCOL, 502, "steer_upstream_broken"),
        (Failure.FIRST_BYTE_TIMEOUT, 504, "steer_upstream_timeout"),
        (Failure.FIRST_TOKEN_TIMEOUT, 504, "steer_upstream_timeout"),
        (Failure.IDLE_TIMEOUT, 504, "steer_upstream_timeout"),
        (Failure.DEADLINE, 504, "steer_deadline"),
    ],
)
def test_our_own_word(failure: Failure, status: int, code: str) -> None:
    """Each way of getting no answer has a status and a code, and calls the SDK off."""
    best: Best[FailedAnswer] = Best()
    problem = conclude(best, Spent([record(failure)]), [], 0.0).problem
    assert problem is not None
    assert (problem.status, problem.code, problem.sdk_retry) == (status, code, False)
    assert "attempt 1 at home" in problem.message


def test_an_uncertain_outcome_is_named() -> None:
    """What may have been executed is not repeated, and the caller is told so."""
    best: Best[FailedAnswer] = Best(uncertain=True)
    problem = conclude(best, Spent([record(Failure.RESET)]), [], 0.0).problem
    assert problem is not None
    assert (problem.status, problem.code) == (504, "steer_outcome_uncertain")


def test_nobody_asked_is_a_503_until_the_first_may_be() -> None:
    """The shortest of the waits is the honest retry-after."""
    best: Best[FailedAnswer] = Best()
    refusals = [Refusal("a", 12.0, Reason.CIRCUIT), Refusal("b", 7.5, Reason.GATE)]
    problem = conclude(best, Spent(), refusals, 0.0).problem
    assert problem is not None
    assert (problem.status, problem.code, problem.retry_after) == (503, "steer_unavailable", 7.5)
    assert "a: its circuit is open; b: its provider asked for patience" in problem.message
