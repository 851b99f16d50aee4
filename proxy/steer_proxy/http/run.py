"""One keyed call being made: apart from its callers, once, and into a recording.

A `Run` is its own task. It takes the key, makes the call, and finishes the record; callers come and
go, and read what it brings. Only who took its key over, or the process's end, stops it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from steer_policies.idempotency import IdempotencyPolicy, Status
from steer_proxy.engine.attempt import Problem
from steer_proxy.engine.claims import Found, Owned
from steer_proxy.http.call import Call
from steer_proxy.http.identity import Identity
from steer_proxy.http.keyed_problems import KeyedProblem
from steer_proxy.http.outlet import ToRecording
from steer_proxy.http.recorded import RecordedResponse
from steer_proxy.http.recording import Recording
from steer_proxy.http.replies import parting_event
from steer_proxy.ledger.values import CallRow, Record


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The ledger could not tell whose the key is."""

    why: str


Resolution = Owned | Found | Unavailable


@dataclass(slots=True, eq=False)
class Run:
    """One keyed call being made, or followed from another process.

    `status` is what its first caller is told in `Idempotency-Status` (None: nothing), `row` what is
    known of the call's end, as its row has it; `sent` whether it may have been executed; `lost`
    whether somebody took the key over meanwhile, `adrift` whether nobody has it any more; `over`
    whether nothing more is done for it, so that nobody else will come; `called_off` whether all had
    left before it was sent; `answered` whether its answer is given, and its record alone still to
    be finished.
    """

    call: Call
    identity: Identity
    policy: IdempotencyPolicy
    recording: Recording
    resolution: asyncio.Future[Resolution]
    status: Status | None = Status.NEW
    row: CallRow | Record | None = None
    joiners: int = 0
    sent: bool = False
    lost: bool = False
    adrift: bool = False
    over: bool = False
    called_off: bool = False
    answered: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def unowned(self) -> bool:
        """Whether the key is not ours any more: no attempt may be begun."""
        return self.lost or self.adrift

    @property
    def outgrown(self) -> bool:
        """Whether it follows another process's call, and has let go of how that began: who wants
        all of the answer may have it from the ledger still."""
        resolution = self.resolution
        follows = resolution.done() and isinstance(resolution.result(), Found)
        return follows and self.recording.too_late

    def lose(self) -> None:
        """Somebody has taken the key over: stop, wherever it is."""
        if self.lost:
            return
        self.lost = True
        if self.task is not None:
            self.task.cancel()

    def drift(self) -> None:
        """Nobody has the key any more: what is under way goes on, and nothing is begun."""
        self.adrift = True

    def call_off(self, *, drained: bool) -> None:
        """Nobody waits for it any more: if it only waits for its turn, it is not made.

        Where they were `drained`, it is ended in a drain's words, and at once: its turn may come
        with the end of the others that are cut.
        """
        task, resolution = self.task, self.resolution
        if self.sent or self.lost or self.over or self.called_off or task is None:
            return
        if resolution.done() and isinstance(resolution.result(), Owned):
            self.called_off = not drained
            task.cancel()

    def left(self) -> None:
        """Somebody is done with it; the last one lets its memory go."""
        if self.joiners == 0 and self.over:
            self.recording.forget()

    def resolve(self, resolution: Resolution) -> None:
        """Tell everyone who waits whose the key is. Only the first word counts."""
        if not self.resolution.done():
            self.resolution.set_result(resolution)

    def say(self, problem: Problem | KeyedProblem) -> None:
        """End the answer with a problem of our own: as an answer, or in the stream it breaks."""
        recording = self.recording
        if recording.ended:
            return
        recording.withdraw()
        if isinstance(problem, KeyedProblem):
            if recording.head is None:
                self.status = problem.status
            problem = problem.problem
        if recording.head is None:
            outlet = ToRecording(recording, _never)
            response = outlet.problem(self.call.dialect, problem, ())
            recording.begin(response.head)
            recording.put(response.body)
            recording.end()
            return
        kind = recording.head.content_type
        recording.put(parting_event(self.call, kind, recording.tail, problem))
        recording.end(broken=True)


def _never(_: RecordedResponse) -> None:
    """A problem is said at once, and whole."""
