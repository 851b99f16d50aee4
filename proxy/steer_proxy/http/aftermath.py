"""What has become of a call that has ended, as far as its key goes."""

from __future__ import annotations

from steer_policies.config import UpstreamPolicy
from steer_policies.idempotency import Save, State
from steer_policies.outcome import TRAITS, Elsewhere, Executed, Verdict
from steer_proxy.engine.attempt import AttemptRecord
from steer_proxy.engine.conclusion import Settled
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.call import Call


def state_after(
    settled: Settled[HttpAnswer], verdict: Verdict | None, call: Call, save: Save
) -> State:
    """What has become of a call that has ended: done, provably not done, or who knows."""
    if settled.hold is not None:
        if verdict is not None and verdict.ok:
            return State.COMPLETED
        earlier = settled.attempts[:-1]
        unrun = verdict is not None and verdict.executed is Executed.NO
        if unrun and not any(may_have_run(record, call) for record in earlier):
            # Committed by its head alone, and the provider's first word was that it failed.
            return State.RELEASED
        # It was executed, for all that is known: what is missing of its answer is lost.
        return State.UNCERTAIN
    if any(may_have_run(record, call) for record in settled.attempts):
        return State.UNCERTAIN
    failure = settled.attempts[-1].verdict.failure if settled.attempts else None
    # Of a refusal that broke off there is no whole to give again.
    whole = settled.answer is not None and not settled.answer.broken
    if save is Save.FINAL and whole and failure is not None:
        traits = TRAITS[failure]
        if not traits.here and traits.elsewhere in (Elsewhere.NEVER, Elsewhere.IF_ROUTE_ASKS):
            return State.COMPLETED
    return State.RELEASED


def may_have_run(record: AttemptRecord, call: Call) -> bool:
    """Whether another try of the call could be another execution of it.

    Not where its upstream was given the key and makes no call twice, and no try can go elsewhere.
    """
    if record.verdict.executed is Executed.NO:
        return False
    policy: UpstreamPolicy = call.config.upstreams[record.upstream].policy
    alone = all(spec.upstream == record.upstream for spec in call.route.policy.targets)
    return not (policy.forwards_idempotency_key and alone)
