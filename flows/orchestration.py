"""Prefect without ceremony: the same flows against an embedded server of this process's own, or against PREFECT_API_URL.

Why not Prefect's own ephemeral mode: its server outlives a `kill -9` of the run, starts only when the first flow is
called, and gives up after a fixed time. Ours starts while the heavy imports go on, dies with its parent (a Linux
parent-death signal), keeps its database in the user's cache, and if it does not come up the work goes on without it.
Everything here must run before `prefect` is imported, because Prefect reads its settings from the environment then.
"""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipelines.errors import UserError

STARTUP_SECONDS = 120.0  # a cold start takes 5-20 s on two busy cores; ten times that is a machine that cannot
RESTARTS = 3
PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Offline and quiet: no telemetry, no UI, no log shipping; a step is minutes of work, so API calls may take their time.
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # errors come back to us as exceptions; told twice, they are no single line
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_API_REQUEST_TIMEOUT": "120",
    "PREFECT_CLI_PROMPT": "false",
}
# Services a single run does not need: each is a loop in the server that wakes on the two cores the training wants.
EMBEDDED_SETTINGS = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_ENABLED": "false",
}


def cache_home() -> Path:
    """The user's cache folder for Gristmill ($XDG_CACHE_HOME or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gristmill"


def prepare_environment() -> None:
    """Set what Prefect must find when it is first imported; what the user has set stands."""
    assert "prefect" not in sys.modules or "PREFECT_HOME" in os.environ, "prefect was imported before its environment was prepared"
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(cache_home() / "prefect"))


@contextmanager
def prefect_api(tell=lambda line: None) -> Iterator[bool]:
    """Have a Prefect API for the time of a `with` block; yields whether there is one.

    With PREFECT_API_URL set, that server is used (and must answer). Otherwise an embedded server runs for the block. If
    it cannot start, `tell` is given one line and the block runs with False: the caller then works without Prefect.

    Raises:
        UserError: PREFECT_API_URL is set and nothing answers there.
    """
    prepare_environment()
    url = os.environ.get("PREFECT_API_URL")
    if url:
        if not _healthy(url, seconds=10):
            raise UserError(f"no Prefect server answers at PREFECT_API_URL={url}; start one (`prefect server start`) or unset it")
        yield True
        return
    server = _Server(tell)
    os.environ["PREFECT_API_URL"] = server.url
    try:
        import prefect  # noqa: F401  the import takes seconds; it goes on while the server starts

        yield server.wait(STARTUP_SECONDS)
    finally:
        server.stop()
        del os.environ["PREFECT_API_URL"]


class _Server:
    """The embedded server's process. If it dies while the flow runs (out of memory, say) it is started again on the same
    port and database, because Prefect's client would otherwise try to reach it for many minutes."""

    def __init__(self, tell) -> None:
        home = Path(os.environ["PREFECT_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.log = Path(tempfile.gettempdir()) / f"gristmill-prefect-{os.getpid()}.log"
        self.tell, self.reached, self.stopping = tell, False, threading.Event()
        self.process = self._launch()

    def _launch(self) -> subprocess.Popen:
        with self.log.open("ab") as sink:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.orchestration", str(self.port), str(os.getpid())],
                env={**os.environ, **EMBEDDED_SETTINGS},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,  # Ctrl-C is for the run alone, which still has things to tell this server
            )

    def wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.tell(f"the embedded Prefect server stopped with code {self.process.returncode} (log: {self.log}); going on without Prefect")
                return False
            if _healthy(self.url, seconds=2):
                self.reached = True
                threading.Thread(target=self._keep_alive, name="prefect-server", daemon=True).start()
                return True
            time.sleep(0.1)
        self.tell(f"the embedded Prefect server did not start in {seconds:.0f} s (log: {self.log}); going on without Prefect")
        return False

    def _keep_alive(self) -> None:
        restarts = 0
        while not self.stopping.wait(0.5):
            if self.process.poll() is None:
                continue
            if restarts == RESTARTS:
                print(f"gristmill: the embedded Prefect server keeps dying (log: {self.log}); the same command with --no-prefect goes on", file=sys.stderr)
                os._exit(1)  # the main thread waits inside Prefect for a server that will not come back; finished parts are on disk
            restarts += 1
            self.process = self._launch()

    def stop(self) -> None:
        self.stopping.set()
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.reached:
            self.log.unlink(missing_ok=True)


def _healthy(api_url: str, seconds: float) -> bool:
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=seconds) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _serve(port: int, parent: int) -> None:
    """The embedded server's process: Prefect's own app under uvicorn, gone when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the signal was armed
        return
    lock = _own_database()
    import uvicorn

    uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=port, log_level="error", lifespan="on")
    lock.close()


def _own_database() -> TextIO:
    """The cache's database if no other run's server has it, else one in memory: SQLite has one writer. Returns the lock."""
    lock = (Path(os.environ["PREFECT_HOME"]) / "embedded.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"
    return lock


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
