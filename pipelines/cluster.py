"""Where parts run: in this process, on a local Dask cluster of processes, or on a Dask scheduler that already runs.

Text work holds the GIL, so a local cluster is processes with one thread each. Items and results must be small (paths,
plans, receipts): tables stay in files.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pipelines.errors import UserError

STARTS = 3  # attempts at starting a local cluster

class Cluster:
    """Maps a function over items; `client` is a `distributed.Client`, or None to work serially in this process."""

    def __init__(self, client: Any | None = None):
        self.client = client

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as they complete. An exception in a part propagates and cancels what has not begun."""
        if self.client is None:
            for index, item in enumerate(items):
                yield index, function(item)
            return
        from distributed import as_completed

        # pure=False: a part's effect is its files, which Dask cannot see, so equal arguments must not be merged.
        futures = self.client.map(function, items, pure=False, retries=2)
        order = {future.key: index for index, future in enumerate(futures)}
        try:
            for future, result in as_completed(futures, with_results=True, raise_errors=True):
                yield order[future.key], result
                future.release()
        finally:
            self.client.cancel(futures)


@contextmanager
def open_cluster(workers: int | None = None, scheduler: str | None = None) -> Iterator[Cluster]:
    """Open a cluster for the time of a `with` block.

    Args:
        workers: processes of a local cluster; None takes one a core, 0 works serially in this process (for debugging).
        scheduler: address of a running Dask scheduler (`tcp://host:8786`); `workers` is then ignored.

    Raises:
        UserError: no scheduler answers at the address.
    """
    if scheduler is None and workers == 0:
        yield Cluster()
        return
    import dask
    from distributed import Client, LocalCluster

    quiet = {"distributed.admin.tick.limit": "60s", "distributed.worker.daemon": True, "distributed.logging.distributed": "error"}
    with dask.config.set(quiet):
        if scheduler is not None:
            try:
                client = Client(scheduler, timeout="10s")
            except (OSError, ValueError) as error:
                raise UserError(f"no Dask scheduler answers at {scheduler}: {error}") from None
            with client:
                yield Cluster(client)
            return
        count = workers or os.cpu_count() or 1
        with _started(LocalCluster, count) as local, Client(local) as client:
            yield Cluster(client)


def _started(local_cluster: type, workers: int) -> Any:
    """A local cluster. Dask replaces a worker that dies at work, but gives up when one dies while it starts: then all start again."""
    # A part bounds its own memory; Dask's pausing and killing at fractions of a guess would only stall it.
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0", "memory_limit": 0, "silence_logs": 50}
    for _ in range(STARTS - 1):
        with suppress(RuntimeError):
            return local_cluster(n_workers=workers, **options)
    return local_cluster(n_workers=workers, **options)
