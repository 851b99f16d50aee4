"""Holds what callers saw against what the provider and the ledger say.

The invariants, by the number a violation carries:

1. A call is executed at most once, unless a rerun was declared.
2. All complete 2xx answers of a call are the same, byte for byte, and what a caller has of a broken
   one is how the others begin.
3. Another payload under a key never reaches the provider while the key is taken.
4. A lower epoch never overwrites a higher one.
5. An answer that a caller has seen whole is replayed from then on.
6. Nothing stays in progress beyond lease and grace.
7. Nothing crosses principals.
8. A purge never removes a live row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from tests.torture.history import EXECUTION, Call, End, Try
from tests.torture.provider_log import Arrival

#: Fields of an answer that a replay need not repeat: they belong to one connection, or say which
#: request this was and how it was served.
OWN_FIELDS: Final = frozenset(
    {
        "age",
        "cf-ray",
        "connection",
        "content-length",
        "date",
        "idempotency-status",
        "idempotent-replayed",
        "keep-alive",
        "set-cookie",
        "transfer-encoding",
        "via",
        "x-steer-request-id",
        "x-steer-trace-id",
    }
)
_LIMITS: Final = ("x-ratelimit-", "anthropic-ratelimit-")

#: How long the end of a stream is held back for its record, at least, and how soon after an outage
#: records are written again, in seconds.
HELD_BACK: Final = 1.5
AGAIN: Final = 1.0

#: What a caller may be told of a call that is complete, besides its answer: all of it says "later",
#: or that the answer was too large to keep.
_LATER: Final = frozenset({"steer_result_not_stored", "steer_key_in_progress"})


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A row of `requests` that stands for a call with a key, not for a duplicate."""

    id: str
    key: str
    scope: str
    state: str
    live: bool
    epoch: int
    lapsed: bool


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold: its number, and what shows it."""

    invariant: int
    what: str

    def __str__(self) -> str:
        return f"({self.invariant}) {self.what}"


@dataclass(slots=True)
class Evidence:
    """Everything a run left behind. `rows` is None when there was no ledger to read."""

    tries: Sequence[Try] = ()
    arrivals: Sequence[Arrival] = ()
    rows: Sequence[LedgerRow] | None = None
    purged: Sequence[LedgerRow] | None = None
    """The rows once more, after everything that may be removed was."""
    outages: Sequence[tuple[float, float]] = ()
    """From when until when the ledger's database was away."""
    checked: Counter[int] = field(default_factory=Counter)
    """How often each invariant was put to the test: none that was never is proved."""

    def promised(self, each: Try) -> bool:
        """Whether the caller has a complete 2xx that it may ask for again.

        An answer that cannot be recorded is given all the same: of a plain one its header says so;
        the end of a stream is held back before, but not for as long as an outage may last.
        """
        if not each.succeeded or each.value("Idempotency-Status") == "not-stored":
            return False
        return not each.call.stream or not any(
            begin + HELD_BACK <= each.ended <= end + AGAIN for begin, end in _merged(self.outages)
        )


def check(evidence: Evidence) -> list[Violation]:
    """Every violation there is; fills `evidence.checked`."""
    calls = _by_call(evidence)
    rows = _rows_by_key(evidence.rows or ())
    found: list[Violation] = []
    for call, (tries, arrivals) in calls.items():
        checks = (
            _one_execution(call, tries, arrivals, rows),
            _same_answer(call, tries),
            _one_payload(call, tries, arrivals),
            _replayed(evidence, tries, arrivals),
            _ended(tries),
            _own_answers(tries),
        )
        for number, violations in zip((1, 2, 3, 5, 6, 7), checks, strict=True):
            evidence.checked[number] += 1
            found += violations
    for scope_rows in _by_scope(evidence.rows or ()).values():
        evidence.checked[4] += 1
        found += _epochs(scope_rows)
    last = evidence.rows if evidence.purged is None else evidence.purged
    for row in last or ():
        evidence.checked[6] += 1
        found += _over(row)
    if last is not None:
        found += _kept(evidence, calls, _rows_by_key(last))
    return found


def _merged(outages: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Outages, less the moments between them that were too short to make up for the first."""
    last: tuple[float, float] | None = None
    for begin, end in outages:
        if last is not None and begin - last[1] <= AGAIN:
            last = (last[0], end)
            continue
        if last is not None:
            yield last
        last = (begin, end)
    if last is not None:
        yield last


def _by_call(evidence: Evidence) -> Mapping[Call, tuple[list[Try], list[Arrival]]]:
    calls: dict[Call, tuple[list[Try], list[Arrival]]] = defaultdict(lambda: ([], []))
    names: dict[tuple[str, str], Call] = {}
    for each in evidence.tries:
        names[each.call.key, each.call.principal] = each.call
        calls[each.call][0].append(each)
    for arrival in evidence.arrivals:
        marker = arrival.marker
        call = names.get((marker.key, marker.principal), Call(marker.key, marker.principal))
        calls[call][1].append(arrival)
    for tries, arrivals in calls.values():
        tries.sort(key=lambda each: each.began)
        arrivals.sort(key=lambda each: each.at)
    return calls


def _rows_by_key(rows: Iterable[LedgerRow]) -> Mapping[str, list[LedgerRow]]:
    found: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        found[row.key].append(row)
    return found


def _by_scope(rows: Iterable[LedgerRow]) -> Mapping[str, list[LedgerRow]]:
    found: dict[str, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        found[row.scope].append(row)
    for scope_rows in found.values():
        scope_rows.sort(key=lambda row: row.epoch)
    return found


def _one_execution(
    call: Call,
    tries: Sequence[Try],
    arrivals: Sequence[Arrival],
    rows: Mapping[str, Sequence[LedgerRow]],
) -> Iterator[Violation]:
    executed = [arrival for arrival in arrivals if arrival.executed]
    allowed = 1
    if call.rerun:
        # Each rerun leaves the row it replaced behind, with a state that says why.
        replaced = (row for row in rows.get(call.key, ()) if not row.live)
        allowed += sum(row.state in {"sent", "uncertain"} for row in replaced)
        # The rows were read before the last tries; those were seen to their end.
        allowed += sum(each.final and each.value("Idempotency-Status") == "rerun" for each in tries)
    if len(executed) > allowed:
        numbers = ", ".join(str(arrival.number) for arrival in executed)
        yield Violation(1, f"{call} was executed {len(executed)} times: requests {numbers}")


def _fields(each: Try) -> list[tuple[str, str]]:
    """The fields that must be the same in every answer of a call."""
    return sorted(
        (name.lower(), value)
        for name, value in each.fields
        if name.lower() not in OWN_FIELDS and not name.lower().startswith(_LIMITS)
    )


def _shown(each: Try) -> tuple[object, ...]:
    """What must be the same in every answer of a call."""
    return each.status, _fields(each), each.body


def _same_answer(call: Call, tries: Sequence[Try]) -> Iterator[Violation]:
    if call.rerun:
        return
    whole = [each for each in tries if each.succeeded]
    for one, other in pairwise(whole):
        if _shown(one) != _shown(other):
            apart = sorted(set(_fields(one)) ^ set(_fields(other)))
            yield Violation(
                2, f"two complete answers of one call differ in {apart}:\n  {one}\n  {other}"
            )
    if not whole:
        return
    for each in tries:
        if not each.begun_well or each.end is End.COMPLETE:
            continue
        # What was added to a stream that broke is an event of its own.
        had = each.body.partition(b'data: {"error"')[0]
        if not whole[0].body.startswith(had):
            yield Violation(2, f"a broken answer is no part of the whole:\n  {each}\n  {whole[0]}")


def _one_payload(
    call: Call, tries: Sequence[Try], arrivals: Sequence[Arrival]
) -> Iterator[Violation]:
    if not call.rerun:
        for index, first in enumerate(arrivals):
            for later in arrivals[index + 1 :]:
                taken = first.executed or (first.ended is not None and later.at < first.ended)
                if taken and later.marker != first.marker:
                    yield Violation(
                        3,
                        f"request {later.number} reached the provider after {first.number}: {call}",
                    )
    for each in tries:
        sent = each.value(EXECUTION)
        if each.begun_well and sent is not None and sent.split()[0] != str(each.marker):
            marker = sent.split()[0]
            if marker.rsplit("/", 1)[0] == f"{call.key}/{call.principal}":
                yield Violation(3, f"the answer of another payload: {each}")


def _replayed(
    evidence: Evidence, tries: Sequence[Try], arrivals: Sequence[Arrival]
) -> Iterator[Violation]:
    seen = min(
        (each for each in tries if evidence.promised(each)),
        key=lambda each: each.ended,
        default=None,
    )
    if seen is None:
        return
    for arrival in arrivals:
        if arrival.at > seen.ended:
            yield Violation(5, f"request {arrival.number} after a complete answer: {seen}")
    for each in tries:
        if each.began < seen.ended or each.payload != seen.payload or each.end is not End.COMPLETE:
            continue
        if each.succeeded or each.code in _LATER:
            continue
        if each.final or (each.status is not None and each.status < 500):
            yield Violation(5, f"a complete answer was not replayed:\n  {seen}\n  {each}")


def _ended(tries: Sequence[Try]) -> Iterator[Violation]:
    for each in tries:
        if each.final and each.end is not End.COMPLETE:
            yield Violation(6, f"no answer when all was well again: {each}")
        if each.final and each.code == "steer_key_in_progress":
            yield Violation(6, f"still in progress when all was well again: {each}")


def _own_answers(tries: Sequence[Try]) -> Iterator[Violation]:
    for each in tries:
        sent = each.value(EXECUTION)
        if sent is None:
            continue
        if sent.split()[0].rsplit("/", 1)[0] != f"{each.call.key}/{each.call.principal}":
            yield Violation(7, f"somebody else's answer: {each}")


def _epochs(rows: Sequence[LedgerRow]) -> Iterator[Violation]:
    """Rows of one scope, by epoch."""
    live = [row for row in rows if row.live]
    if len(live) > 1:
        yield Violation(4, f"{len(live)} live rows of one key: {live}")
    for row in rows:
        if row.state == "completed" and not row.live:
            # Nothing expires during a run: it was completed after it had been replaced.
            yield Violation(4, f"a row that was replaced is completed: {row}")
    if any(row.state == "released" for row in rows):
        return  # who claims a key that was freed begins to count anew
    for row, after in pairwise(rows):
        if row.epoch == after.epoch:
            yield Violation(4, f"two rows of one epoch: {row}, {after}")
        if row.live and after.epoch > row.epoch:
            yield Violation(4, f"a lower epoch is the live one: {row}, {after}")


def _over(row: LedgerRow) -> Iterator[Violation]:
    if row.live and row.state in {"claimed", "sent"} and not row.lapsed:
        yield Violation(6, f"still in progress: {row}")


def _kept(
    evidence: Evidence,
    calls: Mapping[Call, tuple[list[Try], list[Arrival]]],
    rows: Mapping[str, Sequence[LedgerRow]],
) -> Iterator[Violation]:
    seen: dict[str, set[str]] = defaultdict(set)
    for call, (tries, _) in calls.items():
        if any(evidence.promised(each) for each in tries):
            seen[call.key].add(call.principal)
    for key, principals in seen.items():
        evidence.checked[8] += 1
        kept = [row for row in rows.get(key, ()) if row.live and row.state == "completed"]
        if len(kept) < len(principals):
            yield Violation(
                8, f"{len(principals)} complete answers of {key}, {len(kept)} live rows"
            )
