"""Events, their manager, their redaction; and spans."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from steer_llm_sdk import telemetry
from steer_llm_sdk.orchestration import OrchestrationConfig, ToolExecutionError
from steer_llm_sdk.streaming import Event, EventManager, EventType
from steer_llm_sdk.streaming.events import REDACTED, Redactor
from tests.sdk.stubs import Ear, Scripted, always, reliable, unwell


async def test_the_events_of_a_run() -> None:
    """In order: start, plan, retries, fallback, usage, end; each with its facts."""
    ear = Ear()
    tools = [
        Scripted("tool", unwell(), provider="acme"),
        Scripted("spare", {"cost_usd": 0.2}, provider="bolt"),
    ]
    await reliable(*tools, retry={"max_attempts": 2}).run("go", event_manager=ear.manager)
    assert ear.types == [
        "run_started",
        "plan_selected",
        "retry_attempt",
        "fallback",
        "usage",
        "run_completed",
    ]
    assert [str(event.type) for event in ear.events] == [
        *("start", "delta", "delta", "delta", "usage", "complete"),
    ]
    plan, retry = ear.of("plan_selected")[0], ear.of("retry_attempt")[0]
    assert (plan["tool_name"], plan["fallback_tools"]) == ("tool", ["spare"])
    assert plan["reasoning"] == "rule always matched"
    assert (retry["attempt"], retry["delay"], retry["source"]) == (1, 1.0, "tool")
    assert retry["error"] == "not now"
    assert ear.events[2].provider == "acme"
    assert ear.events[-1].provider == "bolt"
    assert all(event.timestamp > 1.7e9 for event in ear.events)


async def test_the_events_of_a_failure() -> None:
    """The last one is an error's."""
    ear = Ear()
    with pytest.raises(ToolExecutionError):
        await reliable(Scripted("tool", unwell(400))).run("go", event_manager=ear.manager)
    last = ear.events[-1]
    assert (last.type, last.metadata["error_type"]) == (EventType.ERROR, "ToolExecutionError")
    assert last.metadata["tool_name"] == "tool"


async def test_a_replay_is_told_and_uses_nothing() -> None:
    """No plan, no usage: an idempotent_replay, with the first run's id."""
    orchestrator = reliable(Scripted("tool", {"usage": {"total_tokens": 5}}))
    options = OrchestrationConfig(idempotency_key="k", request_id="one")
    await orchestrator.run("go", options=options)
    ear = Ear()
    again = OrchestrationConfig(idempotency_key="k", request_id="two")
    await orchestrator.run("go", options=again, event_manager=ear.manager)
    assert ear.types == ["run_started", "idempotent_replay", "run_completed"]
    told = ear.of("idempotent_replay")[0]
    assert (told["original_request_id"], told["joined"]) == ("one", False)
    assert {event.request_id for event in ear.events} == {"two"}
    assert ear.of("run_completed")[0]["replayed"] is True


async def test_callbacks_may_be_plain_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    """Neither changes the run; what they raise is logged."""
    heard: list[Event] = []

    def plain(event: Event) -> None:
        heard.append(event)

    async def burst(_: Event) -> None:
        raise ValueError("broken ear")

    manager = EventManager(on_start=burst, on_delta=plain, on_complete=burst)
    tool = Scripted("tool", unwell(), "done")
    result = await reliable(tool).run("go", event_manager=manager)
    assert (result.content, tool.calls) == ("done", 2)
    assert [event.metadata["event_type"] for event in heard] == ["plan_selected", "retry_attempt"]
    assert caplog.text.count("broken ear") == 2


async def test_a_manager_outside_of_runs() -> None:
    """Its own ids, or made-up ones; nobody listening is fine."""
    heard: list[Event] = []
    manager = EventManager(on_error=heard.append, request_id="r", redactor_cb=lambda _: "-")
    await manager.error({"event_type": "mine", "text": "secret"}, provider="p", model="m")
    await manager.delta({"event_type": "unheard"})
    (event,) = heard
    assert (event.request_id, event.trace_id) == ("r", "r")
    assert (event.provider, event.model) == ("-", "-")
    assert event.metadata == {"event_type": "-", "text": "-"}
    anonymous: list[Event] = []
    await EventManager(on_usage=anonymous.append).usage({})
    assert len(anonymous[0].request_id) == 36


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ab", "AB"),
        (["a", ("b", 1)], ["A", ["B", 1]]),
        ({"a": {"b": "c"}}, {"a": {"b": "C"}}),
        (None, None),
        (True, True),
        (ValueError("x"), "X"),
    ],
)
def test_redaction(value: Any, expected: Any) -> None:
    """Every text, however deep; names of members stay."""
    assert Redactor(str.upper).value(value) == expected
    assert Redactor(None).value(value) is value


def test_redaction_fails_closed() -> None:
    """What the function fails at, returns nothing for, or cannot reach is not shown."""

    def burst(text: str) -> str:
        raise KeyError(text)

    deep: Any = "secret"
    for _ in range(40):
        deep = [deep]
    assert Redactor(burst).value({"a": "secret"}) == {"a": REDACTED}
    assert Redactor(lambda _: None).text("secret") == REDACTED  # type: ignore[arg-type, return-value]
    assert "secret" not in str(Redactor(lambda text: text).value(deep))


# --- Spans


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


async def test_spans(spans: InMemorySpanExporter) -> None:
    """Run, plan, attempts, fallback: one inside the other, without any text of the call."""
    tools = [Scripted("tool", unwell()), Scripted("spare", "secret")]
    await reliable(*tools, retry={"max_attempts": 2}).run(
        "secret", options=OrchestrationConfig(request_id="r")
    )
    found = spans.get_finished_spans()
    names = [span.name for span in found]
    assert names == [
        telemetry.PLAN,
        telemetry.ATTEMPT,
        telemetry.ATTEMPT,
        telemetry.ATTEMPT,
        telemetry.FALLBACK,
        telemetry.RUN,
    ]
    run, fallback = found[-1], found[-2]
    assert run.attributes is not None
    assert run.attributes[telemetry.REQUEST_ID] == "r"
    assert run.attributes[telemetry.TOOL] == "spare"
    parents = {
        span.name: span.parent.span_id for span in found[:-1] if span.parent and span is not run
    }
    assert parents[telemetry.FALLBACK] == run.context.span_id
    assert found[3].parent is not None
    assert found[3].parent.span_id == fallback.context.span_id
    assert [span.status.is_ok for span in found] == [True, False, False, True, True, True]
    assert "secret" not in str([(span.attributes, span.events) for span in found])
    assert "not now" not in str([(span.attributes, span.events) for span in found])


async def test_spans_of_a_failure(spans: InMemorySpanExporter) -> None:
    """The kind of error, never its text."""
    with pytest.raises(ToolExecutionError):
        await reliable(Scripted("tool", ValueError("secret"))).run("go", "tool")
    attempt, run = spans.get_finished_spans()
    assert attempt.attributes is not None
    assert attempt.attributes[telemetry.ERROR] == "ValueError"
    assert run.attributes is not None
    assert run.attributes[telemetry.ERROR] == "ToolExecutionError"


def test_a_process_that_does_not_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded for it, and a library without a provider is none."""
    assert telemetry.tracer() is None
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert telemetry.tracer() is None
    assert "opentelemetry.trace" not in sys.modules


async def test_a_custom_rule_is_named() -> None:
    """By the plan's event."""
    ear = Ear()
    await reliable(Scripted("tool"), planner=always("tool")).run("go", event_manager=ear.manager)
    assert ear.of("plan_selected")[0]["matched_rule"] == "always"
