"""Running Python that a model wrote.

The program gets a process, a temporary folder, an empty environment and hard limits (CPU seconds, memory, file size, open files, no
core dumps), and a wall clock that kills it with everything it started. Where the kernel allows user namespaces (`unshare`), it also
has no network and no view of other processes; `isolation()` says which it is, so a caller may refuse to run without.

What this is not: a wall against an attacker with a kernel exploit, and not a private file system: the program may read what this
user may read. Point generation of hostile code at a container.
"""
from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from generators.verify.answer import OK, Verdict, refused

# Runs inside, as the first process of its namespace: starts the program under limits it cannot raise again, and turns a death by
# signal into exit code 128 + signal (the first process of a namespace cannot die of most signals itself).
_LAUNCHER = """
import os, resource, sys
cpu, memory, size, files = map(int, sys.argv[1:5])
child = os.fork()
if child:
    status = os.waitpid(child, 0)[1]
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
for what, limit in ((resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, size), (resource.RLIMIT_NOFILE, files),
                    (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (limit, limit))
os.execv(sys.executable, [sys.executable, "-I", "-X", "utf8", "program.py"])
"""
_NAMESPACES = ["--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """wall, cpu: seconds. memory, output: bytes (output bounds every file written, stdout and stderr included)."""

    wall: float = 10.0
    cpu: int = 5
    memory: int = 512 << 20
    output: int = 1 << 20
    files: int = 64


@dataclass(frozen=True)
class Execution:
    """status: "ok" (exit code 0), "error" (any other way to end), "timeout" (wall or CPU limit)."""

    status: str
    exit_code: int
    stdout: str
    stderr: str


@lru_cache(maxsize=1)
def isolation() -> str:
    """"namespaces" (no network, own process ids) or "limits" (only resource limits)."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return "limits"
    probe = subprocess.run([unshare, *_NAMESPACES, "true"], capture_output=True, timeout=30)
    return "namespaces" if probe.returncode == 0 else "limits"


def run_python(code: str, stdin: str = "", limits: Limits = Limits()) -> Execution:
    """Run a program; never raises for what it does."""
    inside = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(limits.cpu), str(limits.memory), str(limits.output), str(limits.files)]
    if isolation() == "namespaces":
        inside = [shutil.which("unshare") or "unshare", *_NAMESPACES, *inside]
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        room = Path(folder)
        (room / "program.py").write_text(code, encoding="utf-8", errors="replace")
        (room / "stdin").write_text(stdin, encoding="utf-8")
        with (room / "stdin").open("rb") as given, (room / "stdout").open("wb") as out, (room / "stderr").open("wb") as err:
            process = subprocess.Popen(inside, cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
                                       stdin=given, stdout=out, stderr=err, start_new_session=True)
            try:
                code_out, late = process.wait(limits.wall), False
            except subprocess.TimeoutExpired:
                late = True
            finally:
                with contextlib.suppress(ProcessLookupError):  # it left nothing running
                    os.killpg(process.pid, signal.SIGKILL)
                code_out = process.wait()
        stdout, stderr = (_head(room / name, limits.output) for name in ("stdout", "stderr"))
    cpu_over = code_out in (128 + signal.SIGXCPU, 128 + signal.SIGKILL)
    status = "timeout" if late or cpu_over else "ok" if code_out == 0 else "error"
    return Execution(status, code_out, stdout, stderr)


def check_program(code: str, cases: list[tuple[str, str]], limits: Limits = Limits()) -> Verdict:
    """Whether a program answers every (stdin, expected stdout) case, compared without trailing white space on lines and at the end.

    Reasons: code.timeout, code.error, code.wrong_output."""
    for stdin, expected in cases:
        done = run_python(code, stdin, limits)
        if done.status != "ok":
            return refused(f"code.{done.status}")
        if _lines(done.stdout) != _lines(expected):
            return refused("code.wrong_output")
    return OK


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _head(file: Path, size: int) -> str:
    with file.open("rb") as stream:
        return stream.read(size).decode("utf-8", errors="replace")
