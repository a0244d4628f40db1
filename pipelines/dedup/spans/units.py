"""The pieces of text that may be repeated, part by part: each is sent, as a hash with its span, to where its equals are."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from kernels.minimizers import minimizers, window_hashes
from kernels.ngrams import find_grams, gram_filter
from kernels.segments import pieces
from pipelines.dedup.chunks import Outbox, chunks, messages
from pipelines.dedup.exchange import bucket_of, column, documents
from pipelines.dedup.rank import read_columns, read_rank
from pipelines.dedup.spans.recipe import SpanRecipe
from pipelines.dedup.spans.seeds import symbols_of
from pipelines.errors import UserError
from pipelines.stage import PartOutput
from pipelines.tokenizer import load_tokenizer

Pieces = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # hash uint64, row int64, start uint32, end uint32 (bytes of the row's text)


def write_units(payload: dict, recipe: SpanRecipe, output: PartOutput) -> None:
    """Send (key, document, start, end), with the host and the sort key where the recipe asks for them, to the key's bucket."""
    index = payload["index"]
    tokenizer = load_tokenizer(payload["tokenizer"]) if payload["tokenizer"] else None
    outbox = Outbox(output, "units", index, payload["buckets"])
    beside = _beside(payload["part"], recipe)
    begin = sent = 0
    for number, rows in enumerate(chunks(payload["part"], recipe.text, [recipe.text]), payload["first_chunk"]):
        texts = rows[recipe.text]
        if recipe.exact:
            wanted = np.unique(column(messages(payload["repeated"], number), "key"))
            found = _repeatable_windows(texts, tokenizer, recipe.width, wanted)
        else:
            found = iter((pieces(texts, recipe.unit, recipe.width, recipe.min_words, recipe.normalisation),))
        for key, row, start, end in found:
            table = pa.table({"key": key, "document": documents(index, begin + row), "start": start, "end": end})
            for name, values in beside.items():
                table = table.append_column(name, values.take(pa.array(begin + row)))
            outbox.add(table, bucket_of(key, payload["buckets"]))
            sent += key.size
        begin += rows.num_rows
    outbox.close()
    output.count(units=sent)


def _repeatable_windows(texts: pa.ChunkedArray, tokenizer, width: int, wanted: np.ndarray) -> Iterator[Pieces]:
    """Row by row, the windows whose minimizer is in `wanted` (sorted); an empty table first, so that there is always one."""
    yield np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.uint32)
    if not wanted.size:
        return
    bitmap = gram_filter(wanted)
    for row, (symbols, begins, ends) in enumerate(symbols_of(texts, tokenizer)):
        hashes, firsts = minimizers(symbols, width)
        positions = np.empty(hashes.size, np.int64)
        runs = positions[: find_grams(hashes, hashes.size, wanted, bitmap, positions, np.empty(hashes.size, np.int64))]
        if not runs.size:
            continue
        lengths = firsts[runs + 1] - firsts[runs]
        windows = np.repeat(firsts[runs] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        yield (
            window_hashes(symbols, width)[windows],
            np.full(windows.size, row),
            begins[windows].astype(np.uint32),
            ends[windows + width - 1].astype(np.uint32),
        )


def _beside(part: str, recipe: SpanRecipe) -> dict[str, pa.Array]:
    """What travels with a row's pieces: `host` as a number, and the columns of the sort key."""
    columns: dict[str, pa.Array] = {}
    if recipe.count == "hosts":
        table = read_columns(part, ["host"])
        if "host" not in table.column_names:
            raise UserError(f"{part}: no column 'host', which counting hosts needs")
        columns["host"] = pa.array([xxhash.xxh3_64_intdigest(host or "") for host in table["host"].to_pylist()], pa.uint64())
    if recipe.survivor:
        sizes = _text_bytes(part, recipe.text) if any(key.column == "text_bytes" for key in recipe.keys) else None
        rows = read_columns(part, [recipe.text]).num_rows if sizes is None else len(sizes)
        columns |= read_rank(part, recipe.survivor, rows, sizes)
    return columns


def _text_bytes(part: str, text: str) -> pa.Array:
    return pa.concat_arrays([pc.fill_null(pc.binary_length(rows[text]), 0).cast(pa.int64()).combine_chunks() for rows in chunks(part, text, [text])])
