"""How long work says where it stands.

A room that does long work takes a `Progress` and calls it; whether the events become a rich bar, a Prefect artifact or
nothing is decided by the caller. Rooms never print.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """`done` of `total` units of `stage` are finished; `note` is a short free text (loss, rows, current file)."""

    stage: str
    done: int
    total: int
    unit: str = "parts"
    note: str = ""


Progress = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """The progress of somebody who does not want to know."""
