"""The steps of a run as its slots alone tell them, without its code. Pure."""

from collections.abc import Iterable
from dataclasses import replace

from engine import journal, names, values
from engine.model import RETRYABLE_CODES, Attempt, Entry, Failure, Kind, Mark, Step
from engine.records import JournalEntry
from mesh import wire


def steps_of(entries: Iterable[Entry]) -> list[JournalEntry]:
    """What the slots of a run say of its steps: which are decided, and how the attempts went so far.

    What a step asked for is not in its slot, and whether an error is final is known to the run's retry policy alone:
    here it is taken to be the default one.
    """
    by_step: dict[int, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.sequence):
        if entry.kind == Kind.INBOX:
            continue
        known = by_step.setdefault(entry.step, [])
        if not known or known[0].digest == entry.digest:  # a second digest is a mismatch: the first one is the record
            known.append(entry)
    return [_step_of(sorted(found, key=lambda entry: entry.attempt)) for _, found in sorted(by_step.items())]


def _step_of(entries: list[Entry]) -> JournalEntry:
    first = entries[0]
    name = names.decode_name(first.name)
    step = JournalEntry(first.step, name if first.kind == Kind.CALL else f"{first.kind}:{name}")
    failed: list[Attempt] = []
    for entry in entries:
        failure, is_final = _judge(entry)
        step.attempt_count = entry.attempt if entry.mark != Mark.GAVE_UP else entry.attempt - 1
        if failure is not None and not is_final:
            if entry.mark != Mark.UNAVAILABLE:  # nobody received it: it is only counted
                failed.append(Attempt(entry.attempt, 0, entry.time_ns, failure))
            continue
        step.error = failure
        step.completed_ns, step.sequence = entry.time_ns, entry.sequence
        if failure is None:
            step.response, step.response_type = entry.data, _response_type(entry)
        break
    step.attempts = failed
    return step


def _judge(entry: Entry) -> tuple[Failure | None, bool]:
    """How an attempt failed, None if it did not, and whether that decides the step."""
    if entry.mark in {Mark.VALUE, Mark.FIRED}:
        return None, True
    if entry.mark == Mark.GAVE_UP:
        return journal.decode_failure(entry.data), True
    if entry.mark:
        return journal.decode_failure(entry.data), False
    outcome = wire.outcome(entry.data, entry.headers)
    if outcome.ok:
        return None, True
    is_retried = journal.is_retried(outcome, RETRYABLE_CODES.__contains__)
    return journal.answer_failure(outcome, entry.headers), not is_retried


def _response_type(entry: Entry) -> str:
    """Content type of a value: an owner's entry says it; of a service's answer the message's name is not known here."""
    return entry.type if entry.mark else values.PROTOBUF


def recorded_steps(steps: Iterable[Step], entries: Iterable[Entry]) -> list[JournalEntry]:
    """The journal of a run whose code no longer fits it: what is recorded, never what the code attempted instead.

    What a recorded step had asked for is known where the code still asks for the same.
    """
    known = {(step.number, step.title): step.call for step in steps if step.call is not None}
    told = []
    for entry in steps_of(entries):
        call = known.get((entry.step, entry.type))
        told.append(entry if call is None else replace(entry, request=call.request, request_type=call.request_type))
    return told
