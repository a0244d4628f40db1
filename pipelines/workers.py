"""Worker processes of this machine: forked, ready, from one process that has imported what they need.

A command on a few files should not wait for its workers. Two workers of a local Dask cluster took four seconds until both worked: each imports Dask and
us anew. Here one process (`multiprocessing`'s fork server) imports a room of the package while this one reads the recipe and plans; workers are forked
from it in milliseconds, share its memory, and are spoken to through a pipe each.

What goes through the pipes is pickled by this command for this command's own processes; nothing from a disk or a network is ever unpickled.

A worker that dies takes its item with it, and another gets the item. A worker whose pipe closes ends, so none outlives this process by more than an item.
"""

import multiprocessing
import os
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from pipelines.errors import UserError

ATTEMPTS = 3  # at an item, whether its worker dies or it raises (a network that fails now may work next time)
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}  # workers are the parallelism
_processes = multiprocessing.get_context("forkserver")
_rooms: list[str] = []  # what the fork server imports


def prepare(room: str) -> None:
    """Begin to import a room ("pipelines.curate"), and what it has to be done once in a module `warm`, where workers will be forked from.

    The first call counts: what is missing for another room, its workers import.
    """
    if not _rooms:
        _rooms.extend((room, f"{room}.warm"))
        _processes.set_forkserver_preload(_rooms)
    given = dict(os.environ)
    os.environ.update(_ONE_THREAD | given)
    try:
        forkserver.ensure_running()
    finally:
        for name in _ONE_THREAD.keys() - given.keys():
            del os.environ[name]


class Workers:
    """Up to `count` processes, started when there is something to do."""

    def __init__(self, count: int):
        self._count = count
        self._all: list[_Worker] = []
        self._idle: list[_Worker] = []

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `pipelines.cluster.Cluster`. Functions and items are pickled, so functions are those of modules."""
        waiting = deque(range(len(items)))
        failures: Counter[int] = Counter()
        busy: dict[Connection, tuple[_Worker, int]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._count:
                    worker, index = self._idle.pop() if self._idle else self._start(), waiting.popleft()
                    worker.begin(function, items[index])
                    busy[worker.pipe] = worker, index
                for pipe in wait(list(busy)):
                    worker, index = busy.pop(pipe)
                    result, error = worker.outcome()
                    if not isinstance(error, WorkerDied):
                        self._idle.append(worker)
                    if error is None:
                        yield index, result
                        continue
                    failures[index] += 1
                    if failures[index] == ATTEMPTS or isinstance(error, UserError):
                        raise error
                    waiting.appendleft(index)
        finally:
            for worker, _ in busy.values():  # who asked has left, or an item has failed
                worker.stop()

    def _start(self) -> "_Worker":
        for left in reversed(range(ATTEMPTS)):
            try:
                self._all.append(_Worker())
                break
            except (EOFError, OSError):  # the fork server has died: the next attempt starts another
                if not left:
                    raise
        return self._all[-1]

    def close(self) -> None:
        for worker in self._all:
            worker.stop()


class WorkerDied(RuntimeError):
    """A worker ended without an answer."""


class _Worker:
    def __init__(self) -> None:
        prepare("pipelines.stage")
        self.pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def begin(self, function: Callable[[Any], Any], item: Any) -> None:
        with suppress(BrokenPipeError):  # it has died: its outcome says so
            self.pipe.send((function, item))

    def outcome(self) -> tuple[Any, BaseException | None]:
        """(result, None) or (None, error)."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.stop()
            return None, WorkerDied(f"a worker died at its work {ATTEMPTS} times (exit code {self._process.exitcode}; -9 may be the kernel's, out of memory)")

    def stop(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection) -> None:
    """The life of a worker: items until the pipe closes."""
    from tblib import pickling_support

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gives the items
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            message = pipe.recv_bytes()
            try:
                function, item = pickle.loads(message)
                answer = pickle.dumps((function(item), None))
            except Exception as error:
                pickling_support.install(error)  # tracebacks travel too
                answer = _pickled(error)
            pipe.send_bytes(answer)


def _pickled(error: Exception) -> bytes:
    try:
        answer = pickle.dumps((None, error))
        pickle.loads(answer)
    except Exception:  # it holds what cannot travel
        answer = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)))
    return answer
