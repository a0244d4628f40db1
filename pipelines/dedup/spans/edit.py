"""The last step: each part again, its repeated pieces cut out of the texts, and every cut on record.

An edited row carries `removed_spans` (start, end, copies) and `original_text_digest`. Spans are in bytes of the text with that
digest: of a text edited before, the first original, whatever the number of passes. So text plus spans say what was there and
where every byte that is left comes from.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from kernels.cuts import Cuts, cut, find_cuts
from kernels.ngrams import utf8_column
from pipelines.dedup.chunks import chunks, messages
from pipelines.dedup.exchange import column, row_of
from pipelines.dedup.spans.recipe import SpanRecipe
from pipelines.stage import PartOutput

SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("copies", pa.int64())])
SPANS, DIGEST = "removed_spans", "original_text_digest"
Span = tuple[int, int, int]


def edit(payload: dict, recipe: SpanRecipe, output: PartOutput) -> None:
    """Cut the part's texts. Rows whose text loses too much are rejected as they entered."""
    begin = 0
    for number, rows in enumerate(chunks(payload["part"], recipe.text), payload["first_chunk"]):
        told = messages(payload["repeats"], number)
        row = row_of(column(told, "document")) - begin
        data, offsets = utf8_column(rows[recipe.text])
        cuts = find_cuts(data, offsets, row, *(column(told, name) for name in ("start", "end", "copies", "stays")))
        output.read(rows.num_rows)
        output.write(*_split(rows, data, offsets, cuts, recipe))
        lost = int((cuts.end - cuts.start).sum())
        output.count(edited=int(np.unique(cuts.row).size), spans=int(cuts.row.size), removed_bytes=lost, bytes=int(offsets[-1] - offsets[0]))
        begin += rows.num_rows


def _split(rows: pa.Table, data: np.ndarray, offsets: np.ndarray, cuts: Cuts, recipe: SpanRecipe) -> tuple[pa.Table, pa.Table]:
    """(kept, rejected) of a chunk."""
    size = np.diff(offsets)
    lost = np.bincount(cuts.row, weights=cuts.end - cuts.start, minlength=rows.num_rows).astype(np.int64)
    edited = lost > 0
    texts = _column(*cut(data, offsets, cuts), rows[recipe.text])
    left = pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False)
    short = edited & (left < recipe.min_characters)
    mostly = edited & (lost > recipe.max_removed * size)
    leaves = short | mostly
    place = rows.schema.get_field_index(recipe.text)
    kept = rows.set_column(place, recipe.text, texts.cast(rows.schema.field(recipe.text).type))
    kept = _recorded(kept, rows, data, offsets, cuts, edited)
    details = [f"{lost[at]:,} of {size[at]:,} bytes stand elsewhere too, {left[at]:,} characters would be left" for at in np.flatnonzero(leaves)]
    reasons = np.where(mostly, f"{recipe.family}.mostly_repeated", f"{recipe.family}.too_short")[leaves]
    rejected = rows.filter(pa.array(leaves))
    for name, values in (("reason", reasons.tolist()), ("detail", details)):
        rejected = rejected.drop_columns([name] if name in rejected.column_names else []).append_column(name, pa.array(values, pa.string()))
    return kept.filter(pa.array(~leaves)), rejected


def _recorded(kept: pa.Table, rows: pa.Table, data: np.ndarray, offsets: np.ndarray, cuts: Cuts, edited: np.ndarray) -> pa.Table:
    """Add `removed_spans` (none: an empty list) and `original_text_digest` (null where the text was never edited)."""
    known = {name: rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows for name in (SPANS, DIGEST)}
    bounds = np.searchsorted(cuts.row, np.arange(rows.num_rows + 1))
    spans, digests = [], []
    for at in range(rows.num_rows):
        before = [(span["start"], span["end"], span["copies"]) for span in known[SPANS][at] or ()]
        here = slice(bounds[at], bounds[at + 1])
        new = list(zip(cuts.start[here].tolist(), cuts.end[here].tolist(), cuts.copies[here].tolist()))
        spans.append([dict(zip(("start", "end", "copies"), span)) for span in compose(before, new)])
        fresh = edited[at] and known[DIGEST][at] is None
        digests.append(xxhash.xxh3_128_hexdigest(data[offsets[at] : offsets[at + 1]].tobytes()) if fresh else known[DIGEST][at])
    kept = kept.drop_columns([name for name in (SPANS, DIGEST) if name in kept.column_names])
    return kept.append_column(SPANS, pa.array(spans, pa.list_(SPAN))).append_column(DIGEST, pa.array(digests, pa.string()))


def compose(before: list[Span], after: list[Span]) -> list[Span]:
    """One edit for two: `before` are spans of an original, `after` spans of what was left of it; both disjoint and in order.

    The result is in bytes of the original; spans that touch become one, with the larger number of copies.
    """
    if not before:
        return after
    moved = []
    for start, end, copies in after:
        for gone_start, gone_end, _ in before:
            start += (gone_end - gone_start) * (gone_start <= start)
            end += (gone_end - gone_start) * (gone_start < end)  # a gap at the very end stays outside
        moved.append((start, end, copies))
    merged: list[Span] = []
    for start, end, copies in sorted([*before, *moved]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end), max(merged[-1][2], copies))
        else:
            merged.append((start, end, copies))
    return merged


def _column(data: np.ndarray, offsets: np.ndarray, like: pa.ChunkedArray) -> pa.Array:
    """A text column from its bytes; null where `like` is."""
    texts = pa.Array.from_buffers(pa.large_string(), offsets.size - 1, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data.tobytes())])
    return pc.if_else(pc.is_valid(like).combine_chunks(), texts, None)
