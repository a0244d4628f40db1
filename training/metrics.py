"""metrics.jsonl: one line a step, appended and flushed; after a resume it holds each step once.

A run that is killed has written rows of steps it will repeat from its last checkpoint. Opening the log with `keep_until` drops those (and a
last line cut short), so the file of a killed run ends equal, row for row, to that of one never killed (but for its clock columns).
"""

import json
from pathlib import Path
from typing import Any

from pipelines.atomic import write_file


class MetricsLog:
    """Appends rows (JSON objects with an integer "step") to `path`; keeps existing rows with step < keep_until."""

    def __init__(self, path: str | Path, *, keep_until: int = 0) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_rows(self.path) if row["step"] < keep_until] if self.path.exists() else []
        write_file(str(self.path.absolute()), "".join(_line(row) for row in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row and hands it to the system: it survives the death of this process. ValueError for NaN and infinities."""
        self._file.write(_line(row))
        self._file.flush()

    def rows(self) -> list[dict[str, Any]]:
        """Every row of the file."""
        return read_rows(self.path)

    def close(self) -> None:
        self._file.close()


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line without its newline (a writer was killed) is no row."""
    text = Path(path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
