"""math-verify in a process that can be killed.

math-verify parses LaTeX with sympy, which on an unlucky expression never comes back. Its own time-out is SIGALRM, which fails
silently off the main thread (a well-known way to train on all-zero rewards), and removing it hangs. So the parser lives in a child
process that answers one JSON line per question; a child that misses its deadline is killed and replaced.

The child is a plain subprocess, not multiprocessing: Dask workers are daemons, and daemons may not have multiprocessing children.
"""
from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from functools import lru_cache

_CHILD = """
import json, sys
from math_verify import parse, verify
print("ready", flush=True)
for line in sys.stdin:
    right, given = json.loads(line)
    def read(text):
        wrapped = text if "$" in text or "boxed" in text else "$" + text + "$"
        return parse(wrapped, parsing_timeout=None, raise_on_error=False)
    try:
        equal = bool(verify(read(right), read(given), timeout_seconds=None, raise_on_error=False))
    except RecursionError:
        equal = False
    print(json.dumps(equal), flush=True)
"""


class MathVerifier:
    """Compares mathematical answers. timeout: seconds a comparison; start_timeout: seconds for the child to import sympy."""

    def __init__(self, timeout: float = 5.0, start_timeout: float = 120.0) -> None:
        self.timeout, self.start_timeout = timeout, start_timeout
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()

    def equal(self, right: str, given: str) -> bool | None:
        """Whether the two are equal; None when that could not be decided in time. Raises RuntimeError if the child cannot start."""
        with self._lock:
            self._start()
            assert self._child is not None and self._child.stdin is not None
            self._child.stdin.write(json.dumps([right, given]) + "\n")
            self._child.stdin.flush()
            answer = self._read(self.timeout)
            if not answer:  # too slow, or dead (out of memory): the next question gets a new child
                self.close()
                return None
            return json.loads(answer)

    def close(self) -> None:
        """Kills the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()

    def _start(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        environment = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")}
        self._child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, text=True, env=environment)
        self._lines = queue.Queue()
        threading.Thread(target=_pump, args=(self._child.stdout, self._lines), daemon=True).start()
        if self._read(self.start_timeout).strip() != "ready":
            self.close()
            raise RuntimeError("the math-verify process did not start: is math-verify installed?")

    def _read(self, timeout: float) -> str:
        try:
            return self._lines.get(timeout=timeout)
        except queue.Empty:
            return ""


def _pump(stream, lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")  # the end: wakes a reader at once


@lru_cache(maxsize=1)
def _verifier() -> MathVerifier:
    verifier = MathVerifier()
    atexit.register(verifier.close)
    return verifier


def equal(right: str, given: str) -> bool | None:
    """`MathVerifier.equal` on this process's own child."""
    return _verifier().equal(right, given)
