"""What a run tells while it lasts."""

from __future__ import annotations

from steer_llm_sdk.streaming.events import Event, EventType
from steer_llm_sdk.streaming.manager import EventManager

__all__ = ["Event", "EventManager", "EventType"]
