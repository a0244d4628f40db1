"""A job is a list of steps over one run folder; the files in the folder are the truth about which steps are finished.

A step is a pure function from the run's context to a few figures, and a file that exists exactly when it is done. Neither
knows Prefect. `run_step` skips what is finished, times what is not, and appends lines to RUN/timings.jsonl, so that the
figures of a job that was interrupted five times are those of all its sittings.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from pipelines.atomic import write_file
from pipelines.cluster import Cluster, open_cluster
from pipelines.errors import UserError
from pipelines.progress import Progress, ProgressEvent, silent
from pipelines.recipe import Recipe

MEMORY_SAMPLE_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0
STEP = "step"  # the unit of events that say a step begins (0 of 1) or is done (1 of 1)


@dataclass
class Run:
    """What a step may know: the folder, the recipe, how to spread work, whom to tell."""

    folder: Path
    recipe: Any
    workers: int | None = None
    scheduler: str | None = None
    tell: Progress = silent
    step: str = ""
    _cluster: Any = field(default=None, repr=False)
    _open: Any = field(default=None, repr=False)

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def uri(self, *parts: str) -> str:
        return str(self.path(*parts))

    def progress(self, event: ProgressEvent) -> None:
        """The `Progress` a step hands down: what happens inside a step is told under the step's name."""
        self.tell(event if event.stage == self.step else replace(event, stage=f"{self.step} · {event.stage}"))

    @property
    def cluster(self) -> Cluster:
        """The workers of the data stages, opened when the first step asks for them."""
        if self._cluster is None:
            if self.scheduler:
                import distributed  # noqa: F401  its import sets levels; ours come after

                logging.getLogger("distributed").setLevel(logging.ERROR)
            self._open = open_cluster(self.workers, self.scheduler)
            self._cluster = self._open.__enter__()
        return self._cluster

    def close_cluster(self) -> None:
        """Give the workers' memory and cores back, as training wants all of both."""
        if self._open is not None:
            manager, self._open, self._cluster = self._open, None, None
            manager.__exit__(None, None, None)


@dataclass(frozen=True, kw_only=True)
class Step:
    """`run(run)` does the work and returns figures; it is done exactly when `done(run)` says so from the files."""

    name: str
    run: Callable[[Run], Mapping[str, Any]]
    done: Callable[[Run], bool]
    spreads: bool = False  # over the workers; steps that do not spread run with the cluster closed


@dataclass(frozen=True, kw_only=True)
class Group:
    """Steps that belong together: one Prefect subflow."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe's model, the identity a run folder is claimed with, and the steps in order."""

    name: str
    about: str
    recipe: type[Recipe]
    default: str | None = None  # the recipe that is used when none is named; None: the model's own defaults
    identity: Callable[[Any], Mapping[str, Any]]
    groups: Callable[[Any], Sequence[Group]]
    tables: Callable[[Path], Mapping[str, Sequence[Mapping[str, Any]]]]  # what a finished run shows, by title


def run_plainly(job: Job, run: Run) -> None:
    """Do a job's steps in order, in this process, without Prefect."""
    try:
        for group in job.groups(run.recipe):
            for step in group.steps:
                run_step(step, run)
    finally:
        run.close_cluster()


def run_step(step: Step, run: Run) -> dict[str, Any]:
    """Do a step unless its files say it is done; returns its figures (of the sitting that finished it)."""
    if step.done(run):
        run.tell(ProgressEvent(step.name, 1, 1, STEP, "done before"))
        return finished(run.folder).get(step.name, {}).get("figures", {})
    if not step.spreads:
        run.close_cluster()
    run.step = step.name
    run.tell(ProgressEvent(step.name, 0, 1, STEP))
    _append(run.folder, {"step": step.name, "begun": True})
    begun = time.time()
    with peak_memory() as memory, _heartbeat(run.folder, step.name, begun, memory):
        figures = dict(step.run(run))
    assert step.done(run), f"step {step.name} returned without leaving its file"
    entry = {"step": step.name, "finished": True, "seconds": time.time() - begun, "peak_bytes": memory(), "figures": figures}
    _append(run.folder, entry)
    run.tell(ProgressEvent(step.name, 1, 1, STEP, f"{entry['seconds']:.1f} s"))
    return figures


def timings(folder: Path) -> dict[str, dict[str, Any]]:
    """Per step, over all sittings: seconds (summed), peak memory (largest), sittings, finished, figures.

    A sitting that was killed counts up to its last heartbeat.
    """
    steps: dict[str, dict[str, Any]] = {}
    path = folder / "timings.jsonl"
    open_seconds: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # a kill cut the line short
        name = entry["step"]
        step = steps.setdefault(name, {"seconds": 0.0, "peak_bytes": 0, "sittings": 0, "finished": False, "figures": {}})
        if entry.get("begun"):
            step["seconds"] += open_seconds.pop(name, 0.0)
            step["sittings"] += 1
            continue
        step["peak_bytes"] = max(step["peak_bytes"], entry["peak_bytes"])
        open_seconds[name] = entry["seconds"]
        if entry["finished"]:
            step["seconds"] += open_seconds.pop(name)
            step["finished"], step["figures"] = True, entry["figures"]
    for name, seconds in open_seconds.items():
        steps[name]["seconds"] += seconds
    return steps


def finished(folder: Path) -> dict[str, dict[str, Any]]:
    """The steps that were finished, in the order they were."""
    return {name: entry for name, entry in timings(folder).items() if entry["finished"]}


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder this run's, or find that it is already.

    Raises:
        UserError: the folder holds another run, or something that is no run.
    """
    path = folder / "run.json"
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        different = [f"{key}: {there.get(key)!r} there, {value!r} here" for key, value in identity.items() if there.get(key) != value]
        if different:
            raise UserError(f"{folder}: output folder of another run: differs in {'; '.join(different)}; choose another --out or remove it")
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --out wants a folder")
    if folder.exists() and any(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
        raise UserError(f"{folder}: not empty and no run of this command (no run.json); choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, identity)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_file(str(path.absolute()), json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Sample the resident bytes of this process and its children; yields a function that tells the peak so far."""
    me = psutil.Process()
    stop, peak = threading.Event(), [0]

    def sample() -> int:
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue  # it ended between the listing and the look
        peak[0] = max(peak[0], total)
        return peak[0]

    def watch() -> None:
        while not stop.wait(MEMORY_SAMPLE_SECONDS):
            sample()

    thread = threading.Thread(target=watch, name="peak-memory", daemon=True)
    thread.start()
    try:
        yield sample
    finally:
        stop.set()
        thread.join()


@contextmanager
def _heartbeat(folder: Path, step: str, begun: float, memory: Callable[[], int]) -> Iterator[None]:
    """Note every few seconds how far a step has come: all that a killed sitting leaves of its time."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            _append(folder, {"step": step, "finished": False, "seconds": round(time.time() - begun, 1), "peak_bytes": memory()})

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _append(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / "timings.jsonl"
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
        cut = end and file.read(1) != b"\n"
        file.write((("\n" if cut else "") + json.dumps(entry, ensure_ascii=False, default=str) + "\n").encode())
