"""A command as a processor got it: what it says, and what its delivery says."""

from dataclasses import dataclass
from typing import Self

from engine.commands import given_incarnation, read_command
from engine.names import Names
from engine.pull import Delivery
from engine.values import JSON


@dataclass(frozen=True, slots=True)
class DeliveredCommand:
    """What a processor is asked to do. `min_seq` is the journal sequence that its first read must reach."""

    invocation: str
    workflow: str
    partition: int
    incarnation: str
    kind: str
    min_seq: int
    input: bytes
    input_type: str
    partition_key: str
    ack: str
    sequence: int
    count: int
    time_ns: int

    @classmethod
    def read(cls, delivery: Delivery, names: Names) -> Self:
        """Read a delivery, whoever wrote it. Raises InvalidNameError for a subject that is no command's.

        One without a usable incarnation (published by hand) is given one that every delivery of it shares.
        """
        partition, workflow, invocation = names.parse_command(delivery.subject)
        command = read_command(delivery.data, delivery.headers)
        return cls(
            invocation=invocation,
            workflow=workflow,
            partition=partition,
            incarnation=command.incarnation or given_incarnation(delivery.sequence),
            kind=command.kind,
            min_seq=command.min_seq,
            input=command.input,
            input_type=command.input_type or (JSON if command.input else ""),
            partition_key=command.partition_key,
            ack=delivery.ack,
            sequence=delivery.sequence,
            count=delivery.count,
            time_ns=delivery.time_ns,
        )
