"""Find the assets of a namespace, create them, check them."""

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from typing import Any, Self

from engine.assets import settings
from engine.assets.api import EXISTS, NO_PEERS, NO_ROOM, NOT_FOUND, OVERLAP, TOO_MANY_REPLICAS, Api, ApiError
from engine.assets.consumers import DEFAULT_ACK_WAIT, ensure_consumer
from engine.errors import StoreError
from engine.names import Names, check_token
from mesh.connection import Connection
from mesh.errors import PermissionDeniedError

logger = logging.getLogger("engine.assets")

MIN_SERVER = (2, 15, 1)
"""Earlier ones lose or double messages that must not be (message schedules, synced writes, per-subject discard)."""
CLUSTER_PATIENCE = 5.0
"""Seconds to wait for servers of a cluster that is starting, before fewer replicas are asked for."""


@dataclass(frozen=True, slots=True)
class Assets:
    """The assets of a namespace, found or created. `names` is what everything else builds on."""

    api: Api
    names: Names
    replicas: int
    room: int = settings.ROOM
    may_create: bool = True
    may_update: bool = False

    @classmethod
    async def open(
        cls,
        connection: Connection,
        namespace: str = "default",
        *,
        create: bool = True,
        update: bool = False,
        replicas: int | None = None,
        complete: bool = True,
    ) -> Self:
        """Find the namespace, or create it where that is allowed.

        `complete=False` is for clients, which may see no more than EXECUTION_STATE: if that is there, the rest is taken
        to be. `update` brings what exists to our settings and to `replicas`. `replicas=None` is min(3, servers) for
        what is created. Raises InvalidNameError, StoreError (too old a server, no JetStream, missing, foreign,
        different, no room), UnavailableError.
        """
        check_token("namespace", namespace)
        check_server(connection.server_info)
        api = Api(connection)
        cluster = str(connection.server_info.get("cluster") or "")
        place = Names(namespace, _token(cluster) or "local", shards=1)
        found = await _find(api, place.execution_stream)
        if found is None:
            found = await _begin_namespace(api, place, create, _wanted_replicas(replicas, bool(cluster)))
            complete = True
        names = settings.read_names(place, found)
        room = settings.read_room(found)
        assets = cls(api, names, replicas or int(found["num_replicas"]), room, create, update)
        if complete:
            await assets.complete()
        return assets

    async def complete(self) -> None:
        """See to it that every stream and bucket of the namespace is there and as it has to be.

        What this user may not look at is taken to be right. Raises as `open`.
        """
        try:
            await self._ensure_all()
        except ApiError as error:
            if error.err_code != NO_ROOM:
                raise
            # Whoever began the namespace had not yet let go of the room for all, or did not live to do it.
            found = await _find(self.api, self.names.execution_stream)
            if found is not None:
                await _give_room_back(self.api, found)
            await self._ensure_all()
        await asyncio.gather(*map(self._ensure_anchor, range(self.names.shards)))

    async def _ensure_all(self) -> None:
        await asyncio.gather(*map(self._ensure, settings.all_configs(self.names, self.replicas, self.room)))

    async def _ensure(self, config: dict[str, Any]) -> None:
        name = config["name"]
        try:
            found = await _find(self.api, name)
        except PermissionDeniedError as error:
            logger.debug("cannot check %s: %s", name, error)
            return
        if found is None:
            found = await _create(self.api, config, self.may_create)
        settings.check_ours(config, found)
        if self.may_update and (changed := settings.updated(config, found)) is not None:
            found = dict((await self.api.call(f"STREAM.UPDATE.{name}", changed))["config"])
            logger.info("updated %s", name)
        settings.check(config, found)

    async def _ensure_anchor(self, shard: int) -> None:
        """The one message that every read of a shard includes, so that each says up to where it is complete."""
        stream, subject = self.names.journal(shard), self.names.anchor(shard)
        try:
            if not await self._has_message(stream, subject):
                await self.api.ask(subject)
        except PermissionDeniedError as error:
            logger.debug("cannot check the anchor of %s: %s", stream, error)
        except ApiError:
            # Refused because it is there, by another process's hand: the refusal of a full stream has the same number.
            if not await self._has_message(stream, subject):
                raise

    async def _has_message(self, stream: str, subject: str) -> bool:
        try:
            await self.api.call(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except ApiError as error:
            if error.err_code in NOT_FOUND:
                return False
            raise
        return True

    async def ensure_consumer(self, workflow: str, ack_wait: float | None = None) -> float:
        """See to it that a workflow has its consumer. Returns the seconds of `ack_wait` that hold.

        They are those asked for where this user may set them, else the consumer's own; None leaves them as they are
        (DEFAULT_ACK_WAIT for a new one). Raises StoreError, UnavailableError.
        """
        check_token("workflow", workflow)
        seconds = DEFAULT_ACK_WAIT if ack_wait is None else ack_wait
        config = settings.consumer_config(self.names, workflow, seconds)
        return await self._consumer(self.names.commands, config, ack_wait is not None)

    async def ensure_timers_consumer(self, ack_wait: float | None = None) -> float:
        """See to it that fired timers have their consumer; otherwise as `ensure_consumer`."""
        config = settings.timers_consumer_config(self.names, DEFAULT_ACK_WAIT if ack_wait is None else ack_wait)
        return await self._consumer(self.names.timers, config, ack_wait is not None)

    async def ensure_controls_consumers(self, ack_wait: float | None = None) -> None:
        """See to it that the controls of each shard have their consumer; otherwise as `ensure_consumer`."""
        seconds = DEFAULT_ACK_WAIT if ack_wait is None else ack_wait
        await asyncio.gather(
            *(
                self._consumer(
                    self.names.journal(shard),
                    settings.controls_consumer_config(self.names, shard, seconds),
                    ack_wait is not None,
                )
                for shard in range(self.names.shards)
            )
        )

    async def _consumer(self, stream: str, config: dict[str, Any], set_ack_wait: bool) -> float:
        return await ensure_consumer(self.api, stream, config, set_ack_wait=set_ack_wait, may_create=self.may_create)


def check_server(info: dict[str, Any]) -> None:
    """Raises StoreError for a nats-server that is too old to keep what we promise."""
    version = str(info.get("version", ""))
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < MIN_SERVER:
        wanted = ".".join(map(str, MIN_SERVER))
        raise StoreError(f"nats-server {version or 'of unknown version'} is too old: {wanted} or later is needed")


async def _find(api: Api, stream: str) -> dict[str, Any] | None:
    """A stream's configuration, None where there is no such stream."""
    try:
        return dict((await api.call(f"STREAM.INFO.{stream}"))["config"])
    except ApiError as error:
        if error.err_code in NOT_FOUND:
            return None
        raise


def _wanted_replicas(replicas: int | None, clustered: bool) -> list[int]:
    """Numbers of replicas to try, in this order: nobody tells a user how many servers there are."""
    if replicas is not None:
        return [replicas]
    return [3, 2, 1] if clustered else [1]


async def _begin_namespace(api: Api, place: Names, create: bool, replicas: list[int]) -> dict[str, Any]:
    """Create EXECUTION_STATE, which decides about the rest; or adopt what another process has just created.

    It is created with the room of the whole namespace, and gives back what is for the others: so what there is room
    for is known at once, and the same for all who come.
    """
    patience = time.monotonic() + CLUSTER_PATIENCE
    counts, room = list(replicas), settings.ROOM
    while True:
        names = Names(place.namespace, place.cluster, settings.SHARDS if counts[0] == 1 else 1)
        config = settings.execution_config(names, counts[0], room)
        try:
            found = await _create(api, settings.reserving(config), create)
        except ApiError as error:
            if error.err_code == NO_ROOM and room // 4 >= settings.MIN_ROOM:
                room //= 4
            elif error.err_code not in TOO_MANY_REPLICAS or len(counts) == 1:
                raise
            elif error.err_code != NO_PEERS or time.monotonic() > patience:
                del counts[0]
            else:
                await asyncio.sleep(0.1)
        else:
            settings.check_ours(config, found)
            return await _give_room_back(api, found)


async def _give_room_back(api: Api, found: dict[str, Any]) -> dict[str, Any]:
    """EXECUTION_STATE after it has let go of what it only reserved for the others."""
    room = settings.read_room(found)
    if found["max_bytes"] != room:
        return found
    smaller = found | {"max_bytes": room * 2 // 5}
    return dict((await api.call(f"STREAM.UPDATE.{found['name']}", smaller))["config"])


async def _create(api: Api, config: dict[str, Any], allowed: bool) -> dict[str, Any]:
    """Create a stream, or adopt what another process has just created. Raises StoreError."""
    name = config["name"]
    missing = StoreError(f"stream {name} is missing and this user may not create it: run `mesh init`", name)
    if not allowed:
        raise missing
    try:
        created = dict((await api.call(f"STREAM.CREATE.{name}", config))["config"])
    except PermissionDeniedError as error:
        raise missing from error
    except ApiError as error:
        found = await _find(api, name) if error.err_code in EXISTS else None
        if found is not None:
            return found
        if error.err_code == OVERLAP:
            subjects = ", ".join(config["subjects"])
            raise StoreError(f"another stream captures {subjects}: remove it", name) from error
        raise
    else:
        logger.info("created %s", name)
        return created


def _token(text: str) -> str:
    """A cluster's name as one token of a subject."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[:64]
