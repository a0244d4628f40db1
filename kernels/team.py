"""Compiled loops on torch's own threads.

torch's products leave their OpenMP workers spinning for the next one for some milliseconds. A thread of our own that wants the same core meanwhile gets half
of it, in slices longer than a kernel: two threads took as long as one. So loops go to those very workers: `GOMP_parallel` of the libgomp that torch has
loaded is what a compiler makes of `#pragma omp parallel`, and takes any C function, here one that takes the interpreter's lock, reads its arguments and
gives the lock back where the compiled loop begins (30 microseconds in all). Elsewhere (other OpenMP libraries; a forked child, where libgomp's workers are
gone and a call would wait for them) plain threads do the same work.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_pools: list[ThreadPoolExecutor] = []
_forked: list[bool] = []


def _after_fork() -> None:
    _pools.clear()
    _forked.append(True)


os.register_at_fork(after_in_child=_after_fork)


def together(tasks: list[Callable[[], Any]]) -> list[Any]:
    """Results of the tasks, one thread each (fewer if the library grants fewer). A task's exception is raised here."""
    openmp = None if _forked else _openmp()
    if openmp is None:
        others = [_pool().submit(task) for task in tasks[1:]]
        return [tasks[0](), *(other.result() for other in others)]
    results: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []

    def body(_: Any) -> None:
        try:
            for i in range(openmp.omp_get_thread_num(), len(tasks), openmp.omp_get_num_threads()):
                results[i] = tasks[i]()
        except BaseException as error:  # an exception cannot cross C
            errors.append(error)

    openmp.GOMP_parallel(_Body(body), None, len(tasks), 0)
    if errors:
        raise errors[0]
    return results


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The libgomp that torch itself runs on, if that is what it runs on."""
    home = Path(torch.__file__).parent
    found = [path for folder in (home / "lib", home.parent / "torch.libs") for path in sorted(folder.glob("libgomp*.so*"))]
    if not found or "OpenMP" not in torch.__config__.parallel_info():
        return None
    library = ctypes.CDLL(str(found[0]))
    library.GOMP_parallel.argtypes = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library


def _pool() -> ThreadPoolExecutor:
    if not _pools:
        _pools.append(ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="kernels"))
    return _pools[0]
