"""Where parts run: in this process, in processes of this machine, or on a Dask scheduler that already runs.

Text work holds the GIL, so workers are processes with one thread each. Items and results must be small (paths, plans, receipts): tables stay in files.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError
from pipelines.workers import Workers


def _serially(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    for index, item in enumerate(items):
        yield index, function(item)


@dataclass(frozen=True)
class Cluster:
    """`map(function, items)` yields (index, result) as they complete. An exception in a part propagates and cancels what has not begun."""

    map: Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[int, Any]]] = _serially


@contextmanager
def open_cluster(workers: int | None = None, scheduler: str | None = None) -> Iterator[Cluster]:
    """Open a cluster for the time of a `with` block.

    Args:
        workers: processes of this machine; None takes one a core, 0 works serially in this process (for debugging).
        scheduler: address of a running Dask scheduler (`tcp://host:8786`); `workers` is then ignored.

    Raises:
        UserError: no scheduler answers at the address.
    """
    if scheduler is not None:
        with _dask(scheduler) as client:
            yield Cluster(functools.partial(_on_dask, client))
    elif workers == 0:
        yield Cluster()
    else:
        with closing(Workers(workers or os.cpu_count() or 1)) as local:
            yield Cluster(local.map)


@contextmanager
def _dask(scheduler: str) -> Iterator[Any]:
    import dask
    from distributed import Client

    with dask.config.set({"distributed.admin.tick.limit": "60s", "distributed.logging.distributed": "error"}):
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise UserError(f"no Dask scheduler answers at {scheduler}: {error}") from None
        with client:
            yield client


def _on_dask(client: Any, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    from distributed import as_completed

    # pure=False: a part's effect is its files, which Dask cannot see, so equal arguments must not be merged.
    futures = client.map(function, items, pure=False, retries=2)
    order = {future.key: index for index, future in enumerate(futures)}
    try:
        for future, result in as_completed(futures, with_results=True, raise_errors=True):
            yield order[future.key], result
            future.release()
    finally:
        client.cancel(futures)
