"""Find, create and adjust consumers."""

import logging
from typing import Any

from engine.assets import settings
from engine.assets.api import EXISTS, NOT_FOUND, Api, ApiError
from engine.errors import StoreError
from mesh.errors import PermissionDeniedError

logger = logging.getLogger("engine.assets")

DEFAULT_ACK_WAIT = 30.0
"""Seconds until the command of a processor that fell silent goes to another one."""

_FIXED = ("filter_subject", "ack_policy", "max_deliver", "max_ack_pending")


async def ensure_consumer(
    api: Api, stream: str, config: dict[str, Any], *, set_ack_wait: bool, may_create: bool
) -> float:
    """See to it that a consumer exists as it has to be. Returns the seconds of its `ack_wait`.

    With `set_ack_wait` an existing one gets that of `config`, if this user may change it.
    Raises StoreError, UnavailableError.
    """
    name = config["name"]
    found = await _find(api, stream, name) or await _create(api, stream, config, may_create)
    different = [key for key in _FIXED if found.get(key) != config[key]]
    if different and (found.get("metadata") or {}).get(settings.ASSET) != settings.CONSUMER:
        raise StoreError(f"consumer {name} of {stream} was not made by us: remove it", name)
    if different or (set_ack_wait and found["ack_wait"] != config["ack_wait"]):
        found = await _update(api, stream, found | config, found)
        if any(found.get(key) != config[key] for key in _FIXED):
            raise StoreError(f"consumer {name} of {stream} differs in {', '.join(different)}: run `mesh init`", name)
    return float(found["ack_wait"]) / 1e9


async def _find(api: Api, stream: str, name: str) -> dict[str, Any] | None:
    try:
        return dict((await api.call(f"CONSUMER.INFO.{stream}.{name}"))["config"])
    except ApiError as error:
        if error.err_code in NOT_FOUND:
            return None
        raise


async def _create(api: Api, stream: str, config: dict[str, Any], may_create: bool) -> dict[str, Any]:
    name = config["name"]
    missing = StoreError(
        f"consumer {name} of {stream} is missing and this user may not create it: "
        "run `mesh init` with the module of the workflow",
        name,
    )
    if not may_create:
        raise missing
    try:
        return await _write(api, stream, config, "create")
    except PermissionDeniedError as error:
        raise missing from error
    except ApiError as error:
        # Another process was faster.
        found = await _find(api, stream, name) if error.err_code in EXISTS else None
        if found is None:
            raise
        return found


async def _update(api: Api, stream: str, wanted: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The consumer after an update, or as it is where we may not update it."""
    try:
        updated = await _write(api, stream, wanted, "")
    except (PermissionDeniedError, ApiError) as error:
        logger.debug("consumer %s stays as it is: %s", wanted["name"], error)
        return found
    logger.info("consumer %s: ack wait is now %g s", wanted["name"], updated["ack_wait"] / 1e9)
    return updated


async def _write(api: Api, stream: str, config: dict[str, Any], action: str) -> dict[str, Any]:
    # The form without the filter in the subject: what is published to should have no wildcards.
    body = {"stream_name": stream, "config": config, "action": action}
    return dict((await api.call(f"CONSUMER.DURABLE.CREATE.{stream}.{config['name']}", body))["config"])
