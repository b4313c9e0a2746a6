"""Child processes that never outlive us, however we end.

Linux: the kernel kills the child when its parent is gone (`PR_SET_PDEATHSIG`), also after `kill -9`
of the parent. Elsewhere an exit handler does, which a `kill -9` skips.
"""

import atexit
import errno
import os
import queue
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO

Process = subprocess.Popen[bytes]

# Runs between fork and the real program. `preexec_fn` would do it in one step, but runs Python in
# a forked copy of a process with threads, which can deadlock. The parent may have died before the
# request reaches the kernel: hence the check.
_BIND_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def spawn(
    command: Sequence[str | os.PathLike[str]],
    *,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start a program that is killed when this process ends; safe from any thread.

    It has a session of its own: Ctrl-C in the terminal reaches us alone, and we decide in which
    order things stop. `command[0]` is the path of an executable. Raises OSError when there is none.
    """
    arguments = [os.fspath(part) for part in command]
    if shutil.which(arguments[0]) is None:  # the program between would fail where nobody sees it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])
    if sys.platform == "linux":
        bind = [sys.executable, "-I", "-S", "-c", _BIND_TO_PARENT, str(os.getpid())]
        arguments = [*bind, *arguments]

    def start() -> Process:
        return subprocess.Popen(  # noqa: S603  # the caller's program
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            cwd=directory,
            pass_fds=pass_fds,
            start_new_session=True,
        )

    process = _spawner().run(start)
    _live.add(process)
    return process


class _Spawner:
    """Starts all children from one thread that lasts as long as this process.

    For the kernel the parent of a child is the *thread* that forked it: started from a pool's
    thread, a child would be killed when the pool gives the thread up.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._orders: queue.SimpleQueue[tuple[Future[Process], Callable[[], Process]]]
        self._orders = queue.SimpleQueue()
        threading.Thread(target=self._work, name="mesh-spawner", daemon=True).start()

    def run(self, start: Callable[[], Process]) -> Process:
        """Have `start` called in the thread; what it returns or raises."""
        result: Future[Process] = Future()
        self._orders.put((result, start))
        return result.result()

    def _work(self) -> None:
        while True:
            result, start = self._orders.get()
            try:
                result.set_result(start())
            except BaseException as error:  # noqa: BLE001  # handed to whoever asked
                result.set_exception(error)
            del result, start


_live: "weakref.WeakSet[Process]" = weakref.WeakSet()
_current: list[_Spawner] = []
_current_lock = threading.Lock()


def _spawner() -> _Spawner:
    """The spawner of this process: a forked copy of another one has its thread no more."""
    with _current_lock:
        if not _current or _current[-1].pid != os.getpid():
            _current[:] = [_Spawner()]
            _live.clear()
        return _current[-1]


@atexit.register
def _kill_all() -> None:
    if not _current or _current[-1].pid != os.getpid():
        return
    for process in list(_live):
        if process.poll() is None:
            process.kill()
            process.wait()
