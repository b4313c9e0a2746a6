"""A processor: takes commands of its workflows, protects them, and drives their runs.

async with mesh.connect() as m:
    await engine.Processor(m, [hello_workflow], max_concurrent=100, ack_wait=30).run()
"""

import asyncio
import concurrent.futures
import functools
import inspect
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from engine import ownership
from engine.absence import Absences
from engine.assets import Assets
from engine.clock import ServerClock
from engine.definition import Workflow
from engine.delivered import DeliveredCommand
from engine.errors import EngineError, InvalidNameError
from engine.journal import parse_time
from engine.keepalive import Keepalive
from engine.model import Duration, Step, seconds
from engine.names import Names, parse_control
from engine.pull import Delivery, Puller
from engine.records import Record
from engine.replay import Outcome
from engine.run import Run
from engine.settler import Settler
from engine.store import Store
from engine.sweep import Sweeper
from engine.takeup import TakeUp
from engine.timers import TimerHandler
from engine.waker import Waker
from engine.watch import CallWatch
from mesh.connection import Connection
from mesh.errors import MeshError, NoRespondersError, NotConnectedError
from mesh.facade import Mesh

logger = logging.getLogger("engine.processor")

TICK = 0.1
"""Seconds between two looks at every run in memory."""
BUSY_DELAY = 0.1
"""Seconds after which a command that came when the last slot was taken is delivered elsewhere."""
GATE_TIMEOUT = 3.0
"""Seconds after which a run is taken up patiently: one of its gate's two questions was not answered."""
THREADS = 32
"""Synchronous `ctx.run` functions that run at once."""
CLOCK_INTERVAL = 15.0
"""Seconds between two questions for the server's time and the consumers' ack_wait."""
HAND_OVER_TIME = 2.0
"""Seconds that handing over takes at most when the grace of a stop is over."""


class _StreamInfo(msgspec.Struct):
    ts: str = ""


class Processor:
    """Serves workflows from one process.

    `max_concurrent` runs are in memory at once. `ack_wait` (seconds or timedelta) is how long a lost processor goes
    unnoticed: it is set on the workflows' consumers where this user may. `suspend_after` is how long a run must only
    wait before it leaves memory; 0: at every wait. `max_attempts`: how often in a row a run may be taken up without
    progress. `grace`: how long a stop waits for steps that are being executed.
    """

    def __init__(
        self,
        mesh: Mesh,
        workflows: Iterable[Workflow[Any, Any]],
        *,
        max_concurrent: int = 100,
        ack_wait: Duration | None = None,
        suspend_after: Duration = 1.0,
        max_attempts: int = 10,
        grace: Duration = 30.0,
        namespace: str = "default",
    ) -> None:
        self._mesh = mesh
        self.connection: Connection = mesh.connection
        self.workflows = _by_name(workflows)
        if max_concurrent < 1 or max_attempts < 1:
            raise ValueError("max_concurrent and max_attempts must be at least 1")
        self.max_concurrent = max_concurrent
        self.suspend_after = seconds(suspend_after)
        self.max_attempts = max_attempts
        self.grace = seconds(grace)
        self.namespace = namespace
        self.owner = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self.clock = ServerClock()
        self.draining = False
        self.ready = asyncio.Event()
        self.runs: dict[str, Run] = {}
        self._asked_ack_wait = None if ack_wait is None else seconds(ack_wait)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pullers: list[Puller] = []
        self._presence: list[int] = []
        self._lapses = 0
        self._filling = False
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._failed: BaseException | None = None
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, "mesh-run")

    # --- life

    async def run(self) -> None:
        """Serve until `stop` is called. `ready` is set when commands are taken.

        Raises StoreError where the assets are missing or foreign and cannot be made, ConnectError when the connection
        is lost for good.
        """
        await self._start()
        ticker = asyncio.create_task(self._tick_for_ever(), name="mesh-ticker")
        try:
            self.ready.set()
            await self._stopping.wait()
            await self._drain()
        finally:
            ticker.cancel()
            self._end()
        if self._failed is not None:
            raise self._failed

    def stop(self) -> None:
        """Stop in order: un-started commands go back, executing steps end within `grace`, runs are handed over."""
        self._stopping.set()

    async def _start(self) -> None:
        assets = self._assets = await Assets.open(self.connection, self.namespace)
        self.names: Names = assets.names
        ack_waits = await asyncio.gather(
            *(assets.ensure_consumer(name, self._asked_ack_wait) for name in self.workflows)
        )
        await assets.ensure_timers_consumer(self._asked_ack_wait)
        await assets.ensure_controls_consumers(self._asked_ack_wait)
        self.store = Store(self.connection, self.names, assets.replicas)
        self.keepalive = Keepalive(self.connection.options, min(ack_waits))
        self.absences = Absences(self.connection)
        self.watch = CallWatch(self.connection)
        self.sweeper = Sweeper(self.store, self.names)
        self._settlers = [
            Settler(self.store, TimerHandler(self.store, self.names).settle, "fired timer"),
            Settler(self.store, Waker(self.store, self.names).settle, "control"),
        ]
        self.keepalive.start()
        self._lapses = self.keepalive.lapses
        self.connection.on_state(self._on_state)
        for name in self.workflows:
            self._presence.append(self.connection.subscribe(self.names.here(name), self._present, queue="q"))
            self._pullers.append(
                Puller(self.connection, self.names.commands, name, self._on_command, self._room, min(ack_waits))
            )
            self._presence.append(self.connection.subscribe(self.names.controls_for(name), self._on_control))
        self._pull_for_settlers()
        await self._sample_clock()
        self._sample_at = asyncio.get_running_loop().time() + CLOCK_INTERVAL
        for puller in self._pullers:
            puller.start()

    def _pull_for_settlers(self) -> None:
        """Fired timers and controls of all runs: any processor takes them."""
        names = self.names
        timers, controls = self._settlers
        sources = [(names.timers, names.timers_consumer, timers)]
        sources += [(names.journal(shard), names.controls_consumer, controls) for shard in range(names.shards)]
        for stream, consumer, settler in sources:
            self._pullers.append(Puller(self.connection, stream, consumer, settler.deliver, settler.room))

    async def _drain(self) -> None:
        """Give back what has not begun; let executing steps end; hand the rest over."""
        self.draining = True
        for puller in self._pullers:
            puller.stop()
        for sid in self._presence:
            self.connection.unsubscribe(sid)
        for run in list(self.runs.values()):
            if run.invocation is None and not run.is_recorded:  # one being claimed is handed over when it is ours
                self._give_up(run)
            elif not run.held and not run.effects.is_busy():
                self.hand_over(run)
        self._check_idle()
        try:
            async with asyncio.timeout(self.grace):
                await self._idle.wait()
        except TimeoutError:
            logger.warning(
                "%d runs still execute a step after %g s; others will go on with them", len(self.runs), self.grace
            )
            await self._cut_off()
        for settler in self._settlers:
            await settler.drain(self.grace)
        try:
            await self.connection.round_trip()
        except (TimeoutError, NotConnectedError):
            logger.warning("stopped without a connection: what was not acknowledged comes again elsewhere")

    async def _cut_off(self) -> None:
        """The grace is over: what still executes is cancelled and handed over, which counts as no loss."""
        for run in list(self.runs.values()):
            if not run.held:
                run.effects.cancel()
                self.hand_over(run)
        try:
            async with asyncio.timeout(HAND_OVER_TIME):
                await self._idle.wait()
        except TimeoutError:
            for run in list(self.runs.values()):
                self._give_up(run)

    def _give_up(self, run: Run) -> None:
        """Hand a command back without a word in the record. Whose command is in doubt is left alone (H8)."""
        if not run.reclaiming:
            self._hand_back(run.command)
        run.drop("handed back: this processor stops")

    def _end(self) -> None:
        self.store.close()
        self.watch.close()
        self.keepalive.stop()
        self.absences.stop()
        for settler in self._settlers:
            settler.stop()
        for puller in self._pullers:
            puller.stop()
        for task in self._tasks:
            task.cancel()
        for run in list(self.runs.values()):
            run.drop("this processor ends")
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- commands

    def _room(self) -> int:
        return 0 if self.draining else self.max_concurrent - len(self.runs)

    def _on_command(self, delivery: Delivery) -> None:
        self.clock.observe(delivery.time_ns)
        try:
            command = DeliveredCommand.read(delivery, self.names)
        except InvalidNameError as error:
            logger.warning("a command that nobody can run was removed: %s", error)
            self.connection.publish(delivery.ack, b"+TERM")
            return
        held = self.runs.get(command.invocation)
        if held is not None and not self.draining:
            self._on_redelivery(held, command)
        elif self.draining or len(self.runs) >= self.max_concurrent or not self.connection.is_connected:
            self._hand_back(command, 0.0 if self.draining else BUSY_DELAY)
        else:
            self._take_up(command)

    def _take_up(self, command: DeliveredCommand) -> None:
        run = Run(self, command, self.workflows[command.workflow])
        self.runs[run.id] = run
        self.keepalive.hold(command.ack)
        try:
            TakeUp(self, run).begin()
        except NotConnectedError:  # the reconnect takes it up
            return

    def _on_redelivery(self, run: Run, command: DeliveredCommand) -> None:
        """A command of a run that is here: ours was lost to its time-out, or another one waits behind it."""
        if command.sequence != run.command.sequence:
            self._hand_back(command, 1.0)
            return
        self.keepalive.release(run.command.ack)
        run.command = command
        self.keepalive.hold(command.ack)
        self._contest(run)
        self._start_task(self._check_ack_wait())

    def _hand_back(self, command: DeliveredCommand, delay: float = 0.0) -> None:
        try:
            self.store.hand_back(command.ack, delay)
        except NotConnectedError:
            logger.info(
                "command of %s could not be handed back, and comes again after its ack_wait", command.invocation
            )

    def _on_control(self, subject: str, _reply: str, _data: bytes, _block: bytes) -> None:
        """A control on its way to the store: a hint to the run it is for, if that is here."""
        control = parse_control(subject)
        run = self.runs.get(control.invocation) if control is not None else None
        if run is not None and control is not None and run.incarnation == control.incarnation:
            run.hint(subject)

    def _present(self, _subject: str, reply: str, _data: bytes, _block: bytes) -> None:
        if reply:
            self.connection.publish(reply, b'{"served":true}')

    # --- what runs need (engine.run.Host)

    def may_act(self) -> bool:
        """Whether the lease holds. Where it lapsed, every run held is contested from here on."""
        if self.keepalive.is_alive() and self.keepalive.lapses == self._lapses:
            return True
        self._lapsed("no round trip for two thirds of ack_wait")
        return False

    async def lease(self) -> int:
        """Wait until this processor may publish; the number of the lease."""
        while not (self.keepalive.is_alive() and self.connection.is_connected):  # noqa: ASYNC110  # set by a thread
            await asyncio.sleep(TICK / 2)
        return self.keepalive.lapses

    def is_lease(self, number: int) -> bool:
        """Whether that lease still holds: nobody else can have been given our commands since it began."""
        return self.keepalive.is_alive() and self.keepalive.lapses == number

    def run_body(self, step: Step) -> "asyncio.Future[Any]":
        """Start a `ctx.run` function: a coroutine in this loop, anything else in a thread."""
        body = step.body
        assert body is not None
        call = functools.partial(body.function, *body.args, **body.kwargs)
        loop = asyncio.get_running_loop()
        if inspect.iscoroutinefunction(body.function):
            return loop.create_task(call(), name=f"ctx.run {step.name}")
        return loop.create_task(self._in_thread(call), name=f"ctx.run {step.name}")

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        result = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        return await result if inspect.isawaitable(result) else result

    def spawn(self, coroutine: Coroutine[Any, Any, None], run: Run) -> None:
        """Run a coroutine for a run. If it raises, by our fault or the store's, the run is let go and comes again."""
        self._start_task(coroutine).add_done_callback(functools.partial(self._spawned, run))

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _spawned(self, run: Run, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception() is None:
            return
        logger.error("run %s: it is let go and comes again", run.id, exc_info=task.exception())
        run.drop("an error of the processor")

    def claim(self, run: Run) -> None:
        """Write the first record of a run that lasts."""
        self.spawn(ownership.claim(run), run)

    def suspend(self, run: Run) -> None:
        """Put a run away that waits for timers alone."""
        self.spawn(ownership.suspend(run), run)

    def pause(self, run: Run) -> None:
        """Put a run away until somebody has it go on."""
        self.spawn(ownership.pause(run), run)

    def hand_over(self, run: Run) -> None:
        """Give a run to another processor."""
        self.spawn(ownership.hand_over(run), run)

    def finish(self, run: Run, outcome: Outcome) -> None:
        """Write the final record of a run whose code has ended."""
        if run.replay is not None and run.replay.mismatched:
            self.spawn(ownership.end_mismatched(run, outcome), run)
        else:
            ownership.Ending(run, outcome).begin()

    def settle(self, run: Run) -> None:
        """Find out what became of a final record that is not acknowledged."""
        self.spawn(ownership.settle(run), run)

    def released(self, run: Run) -> None:
        """A slot is free."""
        self.runs.pop(run.id, None)
        if self.draining:
            self._check_idle()
        elif not self._filling:
            self._filling = True
            asyncio.get_running_loop().call_soon(self._fill)

    def _fill(self) -> None:
        self._filling = False
        for puller in self._pullers:
            puller.fill()

    def finished(self, run: Run, record: Record) -> None:
        """Timers that nobody waits for, and the journal of a run whose record holds everything, are not needed."""
        if run.timers_scheduled:
            self.sweeper.purge(self.names.timers, self.names.schedules(run.id, run.incarnation))
        self.sweeper.finished(run.slots, run.shard, record, run.controls if run.has_controls else "")

    def _check_idle(self) -> None:
        if not self.runs:
            self._idle.set()

    # --- silence, reconnects

    def _on_state(self, state: str) -> None:
        if state == "disconnected":
            self.keepalive.expire()
        elif state == "reconnected":
            self._lapsed("reconnected")
            for puller in self._pullers:
                puller.restart()
        elif state == "closed" and not self._stopping.is_set():
            self._failed = NotConnectedError()
            self._stopping.set()

    def _lapsed(self, why: str) -> None:
        self._lapses = self.keepalive.lapses
        contested = sum(map(self._contest, list(self.runs.values())))
        if contested:
            logger.warning("%s: %d runs are claimed again before they go on", why, contested)

    def _contest(self, run: Run) -> bool:
        """Have a run claimed again; whether that was not under way already."""
        if not run.contest():
            return False
        self.spawn(self._reclaim(run), run)
        return True

    async def _reclaim(self, run: Run) -> None:
        if run.invocation is None:  # not taken up yet: its gate begins again
            await TakeUp(self, run).patiently()
        else:
            await ownership.reclaim(run)

    # --- the ticker

    async def _sample_clock(self) -> None:
        """Ask the server what time it is: entries that it stored long ago do not tell."""
        subject = f"$JS.API.STREAM.INFO.{self.names.execution_stream}"
        try:
            answer = await self.connection.ask(subject, timeout=5.0)
            self.clock.observe(parse_time(msgspec.json.decode(answer.data, type=_StreamInfo).ts))
        except (TimeoutError, NotConnectedError, NoRespondersError, msgspec.DecodeError, ValueError):
            logger.warning("the server did not tell its time; timers go by its time stamps on stored messages")

    async def _check_ack_wait(self) -> None:
        """Renew as often as the consumers say, which another processor may have changed."""
        try:
            ack_waits = [await self._assets.ensure_consumer(name) for name in self.workflows]
        except (EngineError, MeshError) as error:
            logger.warning("the consumers cannot be looked at: %s", error)
            return
        if min(ack_waits) != self.keepalive.ack_wait:
            logger.info("ack_wait is %g s now", min(ack_waits))
            self.keepalive.ack_wait = min(ack_waits)

    async def _tick_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK)
            try:
                if self.connection.is_connected:
                    self._tick(loop.time())
            except NotConnectedError:
                continue
            except Exception:  # without this task nothing is claimed, repaired or pulled any more
                logger.exception("a look at everything in memory failed; the next one follows")

    def _tick(self, now: float) -> None:
        if now >= self._sample_at:
            self._sample_at = now + CLOCK_INTERVAL
            self._start_task(self._sample_clock())
            self._start_task(self._check_ack_wait())
        self.may_act()
        self.sweeper.tick(now)
        self.watch.tick(now, self.runs.values())
        for puller in self._pullers:
            puller.tick(now)
        for run in list(self.runs.values()):
            self._tick_run(run, now)

    def _tick_run(self, run: Run, now: float) -> None:
        try:
            run.tick(now)
            if run.invocation is None and now - run.began > GATE_TIMEOUT:
                self._contest(run)
        except NotConnectedError:
            raise
        except Exception:  # one run's fault must not stop the look at all others
            logger.exception("run %s: it is let go and comes again", run.id)
            run.drop("an error of the processor")


def _by_name(workflows: Iterable[Workflow[Any, Any]]) -> dict[str, Workflow[Any, Any]]:
    found: dict[str, Workflow[Any, Any]] = {}
    for workflow in workflows:
        if not isinstance(workflow, Workflow):
            raise TypeError(f"not a workflow: {workflow!r}; decorate it with @engine.workflow")
        if found.setdefault(workflow.name, workflow) is not workflow:
            raise InvalidNameError("workflow name", workflow.name, "one workflow of a name in a processor")
    if not found:
        raise ValueError("a processor needs at least one workflow")
    return found
