"""Streams, buckets and consumers: what the engine keeps in JetStream.

    COMMANDS           starts and wakes that wait for a processor
    TIMERS             schedules, and what fired
    JOURNAL[-n]        what the steps of runs came to: write-once
    EXECUTION_STATE    a record for each invocation
    WORKFLOW_STATE     what keyed workflows keep

Whoever comes first creates them, and several may at once. EXECUTION_STATE goes first, since its metadata decides for
all others: how many shards the journal has, and the cluster's name. A stream that has one of our names and was not
made by us is refused, and never changed.

    settings     what they have to be, each with its reason
    api          requests to JetStream
    consumers    find, create and adjust consumers
    namespace    find, create and check all of them: `Assets`
"""

from engine.assets.api import Api, ApiError
from engine.assets.consumers import DEFAULT_ACK_WAIT
from engine.assets.namespace import MIN_SERVER, Assets, check_server

__all__ = ["DEFAULT_ACK_WAIT", "MIN_SERVER", "Api", "ApiError", "Assets", "check_server"]
