"""The client: start invocations, wait for their results, look at them.

client        `Client`: what users call
handle        `Handle`: a started invocation
submission    exactly once by id
waiting       one subscription an id, a read where a notice is lost
lookup        record and command of an id
description   what `describe` answers
"""

from engine.client.client import Client
from engine.client.description import AttemptInfo, Description, ErrorInfo, JournalItem, WaitInfo
from engine.client.handle import Handle

__all__ = ["AttemptInfo", "Client", "Description", "ErrorInfo", "Handle", "JournalItem", "WaitInfo"]
