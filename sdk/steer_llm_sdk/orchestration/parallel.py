"""A plan's tools at once: the first result counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from steer_llm_sdk.errors import ToolExecutionError
from steer_llm_sdk.orchestration.attempt import Answer, Candidate
from steer_llm_sdk.orchestration.execution import ReliableExecutor
from steer_llm_sdk.orchestration.run import Run


async def race(executor: ReliableExecutor, run: Run, candidates: Sequence[Candidate]) -> Answer:
    """The first result of any of the tools; the others are cancelled and waited for.

    At most `max_parallel` are under way at once, in the order of the plan, and no more than
    `max_fallback_attempts` beside the first. Each is retried as it would be alone.

    Raises:
        ToolExecutionError: none gave a result; that of the first tool, with every tool's details.
    """
    most = 1 + executor.retry_manager.config.max_fallback_attempts
    runners = list(candidates[:most])
    waiting = list(runners)
    tasks: dict[asyncio.Task[Answer], Candidate] = {}
    failures: dict[int, ToolExecutionError] = {}
    try:
        while waiting or tasks:
            while waiting and len(tasks) < run.options.max_parallel:
                candidate = waiting.pop(0)
                task = asyncio.create_task(executor.execute(run, [candidate]))
                tasks[task] = candidate
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ended = [(task, candidate) for task, candidate in tasks.items() if task in done]
            for task, candidate in ended:
                del tasks[task]
                try:
                    answer = task.result()
                except ToolExecutionError as error:
                    failures[runners.index(candidate)] = error
                else:
                    return _with_all(answer, runners)
    finally:
        for task in tasks:
            task.add_done_callback(_seen)
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
    raise _worst(failures)


def _seen(task: asyncio.Task[Answer]) -> None:
    """Whatever it ended with, nobody asks any more."""
    if not task.cancelled():
        task.exception()


def _with_all(answer: Answer, runners: Sequence[Candidate]) -> Answer:
    tried = tuple(each for each in runners if each.attempts)
    attempts = sum(each.attempts for each in tried)
    return replace(
        answer,
        attempts=attempts,
        tried=tried,
        fallback_used=answer.candidate is not runners[0],
    )


def _worst(failures: dict[int, ToolExecutionError]) -> ToolExecutionError:
    """The first tool's failure, with what became of all."""
    errors = [failures[index] for index in sorted(failures)]
    first = errors[0]
    waits = [each.retry_after for each in errors if each.retry_after is not None]
    first.attempts = sum(each.attempts for each in errors)
    first.retry_after = min(waits, default=None)
    first.maybe_executed = any(each.maybe_executed for each in errors)
    first.details = tuple(detail for each in errors for detail in each.details)
    return first
