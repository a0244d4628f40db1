"""What changes between two recipes on a curated dataset: who moves from which reason to which, from the signals alone.

Nothing is written and no text is read, so trying a threshold costs seconds: the streamed columns are signals, language, id and URL. Rows that were
never measured (unreadable, not HTML, refused by URL) leave for the same reason under any recipe; they are counted and do not move.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cluster import Cluster
from pipelines.curate.judge import verdicts
from pipelines.curate.recipe import CurateRecipe
from pipelines.curate.select import parts_of
from pipelines.dataset import read_batches
from pipelines.progress import Progress, ProgressEvent, silent

KEPT = "kept"
EXAMPLES = 3  # of each move: the first in the dataset's order
_COLUMNS = ("id", "url", "language", "license_class")


@dataclass
class Move:
    """Documents that are `before` (a reason, or "kept") by the first recipe and `after` by the second."""

    before: str
    after: str
    rows: int = 0
    words: int = 0
    characters: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, other: "Move") -> None:
        self.rows, self.words, self.characters = self.rows + other.rows, self.words + other.words, self.characters + other.characters
        self.examples = (self.examples + other.examples)[:EXAMPLES]


@dataclass(frozen=True)
class Comparison:
    """`moves` are by size, those that stay where they are included; `unmeasured` rows have no signals and stay refused."""

    rows: int
    unmeasured: int
    moves: list[Move]

    def kept(self, side: str) -> tuple[int, int]:
        """(rows, words) that the recipe `side` ("before" or "after") keeps."""
        mine = [move for move in self.moves if getattr(move, side) == KEPT]
        return sum(move.rows for move in mine), sum(move.words for move in mine)


def compare(first: CurateRecipe, second: CurateRecipe, dataset: str, cluster: Cluster | None = None, progress: Progress = silent) -> Comparison:
    """Apply both recipes' families, rules, thresholds and languages to a curated (or selected) dataset.

    datatrove's own filters need the text; they are no part of the comparison.

    Raises:
        UserError: it is no curated dataset.
    """
    files = [file for part in parts_of(dataset) for file in part]
    found: list[tuple[int, int, dict[tuple[str, str], Move]] | None] = [None] * len(files)
    for done, (index, result) in enumerate((cluster or Cluster()).map(functools.partial(_compare_part, first, second), files), 1):
        found[index] = result
        progress(ProgressEvent("compare", done, len(files)))
    moves: dict[tuple[str, str], Move] = {}
    for part in found:
        assert part is not None, "every part reports"
        for key, move in part[2].items():
            moves.setdefault(key, Move(*key)).add(move)
    ordered = sorted(moves.values(), key=lambda move: (move.before == move.after, -move.rows, move.before, move.after))
    return Comparison(sum(part[0] for part in found if part), sum(part[1] for part in found if part), ordered)


def _compare_part(first: CurateRecipe, second: CurateRecipe, file: str) -> tuple[int, int, dict[tuple[str, str], Move]]:
    rows = unmeasured = 0
    moves: dict[tuple[str, str], Move] = {}
    asked = {signal for recipe in (first, second) for family in recipe.tables() for rule in family for signal in rule.signals}
    columns = [*_COLUMNS, *(f"signals.{name}" for name in sorted({"words", "characters", *asked}))]  # of some eighty signals, those that a rule reads
    for batch in read_batches(file, columns, batch_size=8192):
        rows += batch.num_rows
        measured = batch.filter(pc.is_valid(batch["signals"]))
        unmeasured += batch.num_rows - measured.num_rows
        for move in _moves(measured, first, second):
            moves.setdefault((move.before, move.after), Move(move.before, move.after)).add(move)
    return rows, unmeasured, moves


def _moves(batch: pa.RecordBatch, first: CurateRecipe, second: CurateRecipe) -> Iterator[Move]:
    if not batch.num_rows:
        return
    signals, languages, licences = batch["signals"], batch["language"].to_pylist(), batch["license_class"].to_pylist()
    sides = [verdicts(signals, languages, licences, recipe) for recipe in (first, second)]
    pairs = [(before or KEPT, after or KEPT) for before, after in zip(sides[0][0], sides[1][0], strict=True)]
    words, characters = (signals.field(name).to_numpy(zero_copy_only=False) for name in ("words", "characters"))
    places: dict[tuple[str, str], list[int]] = {}
    for row, pair in enumerate(pairs):
        places.setdefault(pair, []).append(row)
    for (before, after), mine in places.items():
        at = np.array(mine)
        examples = [_example(batch, row, sides) for row in mine[:EXAMPLES]] if before != after else []
        yield Move(before, after, len(mine), int(words[at].sum()), int(characters[at].sum()), examples)


def _example(batch: pa.RecordBatch, row: int, sides: list[tuple[list[str], list[str]]]) -> dict[str, Any]:
    about = {name: batch[name][row].as_py() for name in ("id", "url")}
    return {**about, "before": sides[0][1][row], "after": sides[1][1][row]}
