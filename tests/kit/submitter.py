"""A process that submits one id several times at once and prints what it got: `python -m tests.kit.submitter`."""

from __future__ import annotations

import asyncio
import json
import sys

from engine import Client


async def main(url: str, workflow: str, value: str, invocation: str, times: str) -> None:
    """Submit, wait for every result, print them on one line."""
    async with Client.connect(url) as client:
        handles = await asyncio.gather(*(client.start(workflow, value, id=invocation) for _ in range(int(times))))
        results = await asyncio.gather(*(handle.result(timeout=20) for handle in handles))
        print("results", json.dumps(results), flush=True)  # noqa: T201 - how it reports


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
