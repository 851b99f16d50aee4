"""Circuit breakers, providers' failures, and idempotency (`reliability.idempotency`)."""

from __future__ import annotations

from steer_llm_sdk.errors import ProviderError
from steer_llm_sdk.reliability.breakers import CircuitBreakerConfig, CircuitState

__all__ = ["CircuitBreakerConfig", "CircuitState", "ProviderError"]
