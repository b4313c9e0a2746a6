"""Streams, buckets and consumers as they have to be, and the reason of each setting. Pure."""

import json
import re
from collections.abc import Iterator
from typing import Any

from engine.errors import StoreError
from engine.names import Names

SHARDS = 4
"""Journal streams where nothing is replicated: their syncs run side by side (measured: 1.3 to 1.8 times the writes of
one). With replicas one stream does as well, since an append is a group commit."""
MAX_SHARDS = 64

ASSET = "mesh.asset"
NAMESPACE = "mesh.namespace"
CLUSTER = "mesh.cluster"
SHARD_COUNT = "mesh.shards"
ROOM_BYTES = "mesh.room"
CONSUMER = "consumer"
"""What `mesh.asset` says of a consumer."""

TUNABLE = frozenset({"name", "metadata", "description", "max_bytes", "num_replicas", "duplicate_window"})
"""Settings that an operator may choose freely; all others of ours have to be as they are here."""
ROOM = 20 << 30
"""Bytes on each server that a namespace reserves where there is as much; else a quarter of it, and so on. Each stream
gets a share as its `max_bytes`, so that a full store refuses new work and is never a full disk."""
MIN_ROOM = 64 << 20
"""Less than this is no room."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DUPLICATES = 120 * 1_000_000_000
_JOURNAL_DUPLICATES = 100 * 1_000_000


def all_configs(names: Names, replicas: int, room: int = ROOM) -> Iterator[dict[str, Any]]:
    """Every stream of a namespace, EXECUTION_STATE first."""
    yield execution_config(names, replicas, room)
    yield workflow_config(names, replicas, room)
    yield commands_config(names, replicas, room)
    yield timers_config(names, replicas)
    for shard in range(names.shards):
        yield journal_config(names, replicas, room, shard)


def execution_config(names: Names, replicas: int, room: int) -> dict[str, Any]:
    """EXECUTION_STATE: a key-value bucket (ADR-8), so that `nats kv get` reads it, written by compare-and-set only."""
    return _bucket(
        names,
        "EXECUTION_STATE",
        replicas,
        {
            "max_bytes": room * 2 // 5,
            # Whoever waits for a result gets the record itself, after it is stored: nobody polls.
            "republish": {"src": f"$KV.{names.execution_bucket}.>", "dest": names.done("") + ">"},
            "metadata": {SHARD_COUNT: str(names.shards), CLUSTER: names.cluster, ROOM_BYTES: str(room)},
        },
    )


def workflow_config(names: Names, replicas: int, room: int) -> dict[str, Any]:
    """WORKFLOW_STATE: the state of keyed workflows, by compare-and-set as well."""
    return _bucket(names, "WORKFLOW_STATE", replicas, {"max_bytes": room // 10})


def commands_config(names: Names, replicas: int, room: int) -> dict[str, Any]:
    """COMMANDS: the work queue that feeds the processors. Never sharded: that an id is unique is checked here."""
    settings = {
        "subjects": [f"{names.prefix}.cmd.>"],
        "retention": "workqueue",
        "max_bytes": room // 10,
        # A full queue refuses new work; it never drops what it has accepted.
        "discard": "new",
        # A command that comes twice (an acknowledgement was lost) is one command.
        "duplicate_window": _DUPLICATES,
    }
    return _stream(names, "COMMANDS", names.commands, replicas, settings)


def timers_config(names: Names, replicas: int) -> dict[str, Any]:
    """TIMERS: message schedules, for processors only.

    A stream of its own, because whoever may publish one subject of a stream with schedules can write, cancel and read
    all of it. Without `max_bytes`: schedules do not go with `discard: new`, and the oldest timer must not be dropped.
    """
    settings = {
        "subjects": [f"{names.prefix}.timer.>"],
        "retention": "workqueue",
        "discard": "old",
        "allow_msg_schedules": True,
        "allow_msg_ttl": True,
        # The server turns it on where there are schedules.
        "allow_rollup_hdrs": True,
        "duplicate_window": _DUPLICATES,
    }
    return _stream(names, "TIMERS", names.timers, replicas, settings)


def journal_config(names: Names, replicas: int, room: int, shard: int) -> dict[str, Any]:
    """A shard of JOURNAL: write-once slots that services' replies fall into, and controls beside them."""
    place = f"{names.cluster}.{shard}"
    settings = {
        "subjects": [f"{names.prefix}.j.w.{place}.>", f"{names.prefix}.ctl.{place}.>"],
        "retention": "limits",
        # A second message for a slot is refused, so the first answer wins for ever.
        "max_msgs_per_subject": 1,
        "discard": "new",
        "discard_new_per_subject": True,
        "max_bytes": room * 2 // 5 // names.shards,
        # What is recorded is only ever purged, a whole run at a time.
        "deny_delete": True,
        # A service chooses the headers of its reply, which is stored as it is: with roll-ups allowed, one reply header
        # wiped the stream (measured); with a time-to-live an entry would go away under a running workflow.
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "allow_msg_schedules": False,
        "allow_atomic": False,
        # Replays read many entries at once, from any replica; a read says up to where it is complete.
        "allow_direct": True,
        # Told after it is stored: nothing proceeds on an answer that is not. Slots only, not controls.
        "republish": {"src": f"{names.prefix}.j.w.{place}.>", "dest": f"{names.prefix}.j.s.{place}.>"},
        # The shortest there is: a reply that echoes a message id must not be taken for a duplicate.
        "duplicate_window": _JOURNAL_DUPLICATES,
    }
    return _stream(names, "JOURNAL", names.journal(shard), replicas, settings)


def _bucket(names: Names, asset: str, replicas: int, settings: dict[str, Any]) -> dict[str, Any]:
    bucket = names.asset(asset)
    kv = {
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "max_msgs_per_subject": 1,
        # A full bucket refuses; no key is dropped for another.
        "discard": "new",
        "deny_delete": True,
        "allow_rollup_hdrs": True,
        # Markers of purged runs go away by themselves.
        "allow_msg_ttl": True,
        # A replica may lag: ownership is decided by reads from the leader.
        "allow_direct": False,
        # A copy of a write that comes late is not stored again after the key was purged.
        "duplicate_window": _DUPLICATES,
    }
    return _stream(names, asset, f"KV_{bucket}", replicas, kv | settings)


def _stream(names: Names, asset: str, name: str, replicas: int, settings: dict[str, Any]) -> dict[str, Any]:
    metadata = {ASSET: asset, NAMESPACE: names.namespace, **settings.pop("metadata", {})}
    # No limit on a message's size: that is the server's max_payload, whatever it is set to later.
    return {"name": name, "storage": "file", "num_replicas": replicas, "metadata": metadata, **settings}


def consumer_config(names: Names, workflow: str, ack_wait: float) -> dict[str, Any]:
    """A workflow's consumer, named as it and shared by all its processors, with one filter (64: 40 times slower)."""
    return _consumer(names, workflow, names.commands_for(workflow), ack_wait)


def timers_consumer_config(names: Names, ack_wait: float) -> dict[str, Any]:
    """The consumer of fired timers."""
    return _consumer(names, names.timers_consumer, names.fired_timers, ack_wait)


def controls_consumer_config(names: Names, shard: int, ack_wait: float) -> dict[str, Any]:
    """The consumer of a shard's controls: one filter, which no slot matches."""
    return _consumer(names, names.controls_consumer, names.controls_in(shard), ack_wait)


def _consumer(names: Names, name: str, subject: str, ack_wait: float) -> dict[str, Any]:
    return {
        "name": name,
        "durable_name": name,
        "filter_subject": subject,
        "ack_policy": "explicit",
        "ack_wait": round(ack_wait * 1e9),
        # How often a run may be taken up is counted in its record: the server's count repeats after a crash.
        "max_deliver": -1,
        # The limit is one for all processors together; each bounds its own pulls.
        "max_ack_pending": -1,
        "metadata": {ASSET: CONSUMER, NAMESPACE: names.namespace},
    }


# --- compared with what is there


def read_names(place: Names, found: dict[str, Any]) -> Names:
    """What the metadata of EXECUTION_STATE says about its namespace. Raises StoreError where that is no sense."""
    check_ours(execution_config(place, 1, ROOM), found)
    metadata = found["metadata"]
    shards, cluster = str(metadata.get(SHARD_COUNT, "")), str(metadata.get(CLUSTER, ""))
    if not shards.isdigit() or not 1 <= int(shards) <= MAX_SHARDS or not _TOKEN.fullmatch(cluster):
        raise StoreError(f"the metadata of {found['name']} makes no sense: {metadata}", found["name"])
    return Names(place.namespace, cluster, int(shards))


def reserving(config: dict[str, Any]) -> dict[str, Any]:
    """EXECUTION_STATE with the whole room of its namespace: whether there is as much is known before anything else."""
    return config | {"max_bytes": int(config["metadata"][ROOM_BYTES])}


def read_room(found: dict[str, Any]) -> int:
    """The room of a namespace."""
    room = str(found["metadata"].get(ROOM_BYTES, ""))
    return int(room) if room.isdigit() else ROOM


def check_ours(config: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises StoreError for a stream of our name that was not made by us."""
    metadata = found.get("metadata") or {}
    if any(metadata.get(key) != config["metadata"][key] for key in (ASSET, NAMESPACE)):
        raise StoreError(
            f"there is a stream {found['name']} that was not made by us: rename or remove it, or use another namespace",
            found["name"],
        )


def check(config: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises StoreError unless the stream is ours and has every setting that must not differ."""
    check_ours(config, found)
    different = [
        f"{key} is {json.dumps(found.get(key))}, has to be {json.dumps(config[key])}"
        for key in sorted(config.keys() - TUNABLE)
        if not _same(found.get(key), config[key])
    ]
    if different:
        raise StoreError(f"stream {config['name']}: {'; '.join(different)}: run `mesh init`", config["name"])


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return all((found or {}).get(key) == value for key, value in wanted.items())
    return bool(found == wanted) or (not found and not wanted)  # the server leaves out what is false


def updated(config: dict[str, Any], found: dict[str, Any]) -> dict[str, Any] | None:
    """The stream's configuration with our settings, None if it has them; what is tunable stays, but for replicas."""
    fixed = {key: value for key, value in config.items() if key not in TUNABLE or key == "num_replicas"}
    if all(_same(found.get(key), value) for key, value in fixed.items()):
        return None
    return found | fixed
