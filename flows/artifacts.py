"""What Prefect shows of a run: one progress artifact, moved at most once a second, and tables at the end.

Progress events come from training loops and part runners, many a second; an API call in their thread would cost them
time. So they only leave their newest state, and one thread of ours posts it.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flows.steps import STEP
from pipelines.progress import Progress, ProgressEvent

SECONDS_BETWEEN_POSTS = 1.0


@contextmanager
def progress_artifact(steps: Sequence[str], key: str, then: Progress) -> Iterator[Progress]:
    """A `Progress` that moves the flow run's progress artifact and passes every event on to `then`.

    A step's own event says that it begins or ends; events between are its fraction. Must be opened inside
    a flow run.
    """
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    artifact = create_progress_artifact(progress=0.0, key=key, description="begins")
    done: set[str] = set()
    state = {"fraction": 0.0, "text": "begins"}
    changed, stop = threading.Event(), threading.Event()

    def report(event: ProgressEvent) -> None:
        if event.unit == STEP:
            if event.done:
                done.add(event.stage)
            state["fraction"] = 0.0
        else:
            state["fraction"] = event.done / event.total if event.total else 0.0
        state["text"] = f"{event.stage}: {event.done:,}/{event.total:,} {event.unit} {event.note}".strip()
        changed.set()
        then(event)

    def post() -> None:
        percent = 100 * min(1.0, (len(done) + 0.99 * min(1.0, state["fraction"]) * (len(done) < len(steps))) / max(1, len(steps)))
        update_progress_artifact(artifact, progress=round(percent, 1), description=state["text"])

    def poster() -> None:
        while not stop.wait(SECONDS_BETWEEN_POSTS):
            if changed.is_set():
                changed.clear()
                post()

    thread = threading.Thread(target=poster, name="progress-artifact", daemon=True)
    thread.start()
    try:
        yield report
    finally:
        stop.set()
        thread.join(timeout=5)
        post()


def table_artifacts(tables: Mapping[str, Sequence[Mapping[str, Any]]], prefix: str) -> None:
    """Post tables as artifacts of the current flow run; keys are made of the prefix and the title."""
    from prefect.artifacts import create_table_artifact

    for title, rows in tables.items():
        key = re.sub(r"[^a-z0-9]+", "-", f"{prefix}-{title}".lower()).strip("-")
        create_table_artifact(table=[dict(row) for row in rows], key=key, description=title)
