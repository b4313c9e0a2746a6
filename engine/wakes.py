"""Waking a run that is suspended: a command, which goes to a processor that knows the workflow (protocol H17)."""

import secrets
from dataclasses import replace

from engine.commands import wake_headers
from engine.names import Names, check_token
from engine.records import Record
from engine.store import Store, Stored


async def raise_tail(store: Store, stored: Stored, sequence: int) -> bool:
    """Have the next owner's first read reach a message: a run that is paused or failed may run again (H21)."""
    record = stored.record
    assert record is not None
    if record.tail_seq >= sequence:
        return True
    return bool(await store.write_record(replace(record, tail_seq=sequence), stored.revision))


async def wake(store: Store, names: Names, record: Record, min_seq: int) -> bool:
    """Publish a wake whose first read must reach `min_seq`. Whether it is stored: a refusal proves nothing (H18)."""
    invocation = record.invocation_id
    partition = names.partition(record.partition_key or invocation)
    ack = await store.publish(
        names.command(check_token("workflow", record.workflow), invocation, partition),
        b"",
        wake_headers(names, invocation, record.incarnation, min_seq, secrets.token_urlsafe(12)),
    )
    return ack.error is None
