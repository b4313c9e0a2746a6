"""A started invocation, as whoever started it holds it."""

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from engine.client.client import Client
    from engine.client.description import Description

ResultT = TypeVar("ResultT")


class Handle(Generic[ResultT]):
    """An invocation by its id. Holds nothing open; any number of them may be about one invocation."""

    __slots__ = ("_client", "_result_type", "id")

    def __init__(self, client: "Client", invocation_id: str, result_type: Any) -> None:
        self.id = invocation_id
        self._client = client
        self._result_type = result_type

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    async def result(self, timeout: float | None = None) -> ResultT:
        """The result, when the run has ended.

        Raises WorkflowFailedError, WorkflowCancelledError; ResultTimeoutError after `timeout` seconds (the run goes
        on); InvocationNotFoundError; DecodeError; UnavailableError where the connection is closed.
        """
        result: ResultT = await self._client.result(self.id, self._result_type, timeout=timeout)
        return result

    async def cancel(self) -> None:
        """What `Client.cancel` does and raises."""
        await self._client.cancel(self.id)

    async def pause(self) -> None:
        """What `Client.pause` does and raises."""
        await self._client.pause(self.id)

    async def resume(self) -> None:
        """What `Client.resume` does and raises."""
        await self._client.resume(self.id)

    async def signal(self, name: str, value: Any = None) -> None:
        """What `Client.signal` does and raises."""
        await self._client.signal(self.id, name, value)

    async def describe(self) -> "Description":
        """Status, times, attempts, input, result and journal, from what is stored alone.

        Raises InvocationNotFoundError, UnavailableError.
        """
        return await self._client.describe(self.id)
