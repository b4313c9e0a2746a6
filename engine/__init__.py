"""Durable workflows in plain asyncio, on NATS JetStream.

from engine import Context, workflow

@workflow
async def hello_workflow(ctx: Context, name: str) -> str:
    reply = await HelloServiceStub(ctx.channel).SayHello(HelloRequest(name=name))
    return reply.message
"""

from engine.awakeable import Awakeable
from engine.client import Client, Description, Handle
from engine.context import Context
from engine.definition import Workflow, workflow
from engine.errors import (
    AwakeableNotFoundError,
    AwakeableRejectedError,
    AwakeableResolvedError,
    CallFailedError,
    DecodeError,
    EncodeError,
    EngineError,
    ForeignAwaitError,
    InvalidNameError,
    InvocationConflictError,
    InvocationNotFoundError,
    InvocationStateError,
    NonDeterminismError,
    PayloadTooLargeError,
    PoisonError,
    ResultTimeoutError,
    StepFailedError,
    StoreError,
    TerminalError,
    UnavailableError,
    WorkflowCancelledError,
    WorkflowFailedError,
)
from engine.model import RetryPolicy
from engine.processor import Processor
from engine.signals import Signals

__all__ = [
    "Awakeable",
    "AwakeableNotFoundError",
    "AwakeableRejectedError",
    "AwakeableResolvedError",
    "CallFailedError",
    "Client",
    "Context",
    "DecodeError",
    "Description",
    "EncodeError",
    "EngineError",
    "ForeignAwaitError",
    "Handle",
    "InvalidNameError",
    "InvocationConflictError",
    "InvocationNotFoundError",
    "InvocationStateError",
    "NonDeterminismError",
    "PayloadTooLargeError",
    "PoisonError",
    "Processor",
    "ResultTimeoutError",
    "RetryPolicy",
    "Signals",
    "StepFailedError",
    "StoreError",
    "TerminalError",
    "UnavailableError",
    "Workflow",
    "WorkflowCancelledError",
    "WorkflowFailedError",
    "workflow",
]
