"""How long to wait before the next attempt when the provider did not say."""

from __future__ import annotations

from steer_policies.config import RetryPolicy


def backoff(policy: RetryPolicy, retry: int, jitter: float) -> float:
    """Seconds to wait before retry number `retry`; 0 is the one before the second attempt.

    `jitter` is a random number in [0, 1). By default "full jitter", U(0, min(cap, base * 2^n)),
    which finished the same work with the fewest calls in the simulation of "Exponential Backoff and
    Jitter" (AWS Architecture Blog, 2015). With a `jitter_factor` j, the exponential delay times
    U(1 - j, 1 + j); `max_delay` bounds that too, for a bound is what its name promises.
    """
    if policy.initial_delay == 0.0:
        return 0.0
    try:
        delay = min(policy.max_delay, policy.initial_delay * policy.backoff_factor**retry)
    except OverflowError:
        delay = policy.max_delay
    if policy.jitter_factor is None:
        return delay * jitter
    spread = policy.jitter_factor
    return min(policy.max_delay, delay * (1.0 - spread + 2.0 * spread * jitter))
