"""Which n-grams of the index a document holds, and where: the one pass over all text.

Matches are few, so they are kept: a part's `matches` file is all that the verdict needs, and what is common in documents can be counted
from it before anything is decided, without a second look at the text.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from kernels.ngrams import find_grams, fold_table, hash_ngrams, hash_words, utf8_column
from pipelines.arrow_files import write_arrow
from pipelines.benchmark_items import as_text
from pipelines.dataset import open_part
from pipelines.decontaminate.index import Index, expand_ligatures, load_index
from pipelines.decontaminate.recipe import DecontaminateRecipe
from pipelines.errors import UserError
from pipelines.stage import PartOutput

BATCH_ROWS = 1024
MATCHES = {"row": np.int64, "gram": np.int64, "begin": np.int64, "end": np.int64}  # row of the part, number of the n-gram, matching bytes


def write_matches(payload: dict, recipe: DecontaminateRecipe, output: PartOutput) -> None:
    """`matches-N.arrow` (MATCHES) of a part, and `documents-N.arrow`: in how many of its documents each n-gram found occurs."""
    index = load_index(tuple(payload["index"]), payload["digest"])
    found: dict[str, list[np.ndarray]] = {name: [np.empty(0, kind)] for name, kind in MATCHES.items()}
    counted: list[np.ndarray] = [np.empty(0, np.int64)]
    first = 0
    for table in batches(payload["part"], recipe.text, only=True):
        for row, grams, begins, ends in _matches(text_column(table[recipe.text]), index, recipe):
            counted.append(np.unique(grams))
            if not payload["reference"]:
                for name, values in zip(MATCHES, (np.full(grams.size, first + row), grams, begins, ends), strict=True):
                    found[name].append(values)
        first += table.num_rows
    grams, documents = np.unique(np.concatenate(counted), return_counts=True)
    write_arrow(output, f"documents-{payload['number']:05d}.arrow", {"gram": grams, "documents": documents})
    if not payload["reference"]:
        write_arrow(output, f"matches-{payload['number']:05d}.arrow", {name: np.concatenate(arrays) for name, arrays in found.items()})


def _matches(column: pa.Array, index: Index, recipe: DecontaminateRecipe) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For each document with any match: (row, numbers of n-grams, first bytes, ends), in the order of the text."""
    data, offsets = utf8_column(column)
    raw = expand_ligatures(data.tobytes())
    data = np.frombuffer(raw, np.uint8)
    longest = int(np.diff(offsets).max(initial=1)) or 1
    units, grams = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    starts, ends, positions, entries = (np.empty(longest, np.int64) for _ in range(4))
    table = fold_table(recipe.normalisation)
    for row, base in enumerate(offsets[:-1]):
        count = hash_words(data, base, offsets[row + 1], table, units, starts, ends)
        places, numbers, lasts = [], [], []
        for one in index.by_length:
            if count < one.length:
                continue
            total = hash_ngrams(units, count, one.length, grams)
            hits = find_grams(grams, total, one.grams, one.bitmap, positions, entries)
            at = positions[:hits].copy()
            number = entries[:hits] + one.first
            after = at + one.length
            if recipe.n is None:  # a whole item must end where the text does, else it is the beginning of another problem: "2 + 3" of "2 + 3 + 4"
                alone = [place == count or _apart(raw, ends[place - 1], starts[place]) or raw[starts[place]] == ord("!") for place in after]
            elif one.length < recipe.n:  # a short item must begin a sentence: inside one it is ordinary language
                alone = [place == 0 or _apart(raw, ends[place - 1], starts[place]) for place in at]
            else:
                alone = np.ones(hits, bool)
            alone = np.asarray(alone, bool)
            at, number = at[alone], number[alone]
            places.append(at)
            numbers.append(number)
            lasts.append(at + one.length - 1)
        place = np.concatenate(places) if places else np.empty(0, np.int64)
        if place.size:
            order = np.argsort(place, kind="stable")
            yield row, np.concatenate(numbers)[order], starts[place[order]] - base, ends[np.concatenate(lasts)[order]] - base


def _apart(raw: bytes, end: int, start: int) -> bool:
    """Whether more than spaces and commas stand between two words."""
    return bool(raw[end:start].strip(b" ,"))


def batches(part: str, text: str, only: bool = False) -> Iterator[pa.Table]:
    """The part's rows, or their text alone."""
    with open_part(part) as parquet:
        names = parquet.schema_arrow.names
        if text not in names:
            raise UserError(f"{part}: no column {text!r} (columns: {', '.join(names)})")
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=[text] if only else None):
            yield pa.Table.from_batches([batch])


def text_column(column: pa.ChunkedArray) -> pa.Array:
    """Strings as they are; anything nested as its text."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.combine_chunks().cast(pa.large_string())
    return pa.array([as_text(value) for value in column.to_pylist()], pa.large_string())
