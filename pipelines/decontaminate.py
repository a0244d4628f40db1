"""No benchmark in the training data: documents that share n-grams with held-out items leave, with the item and the span shown.

    index      all items, normalised; n-grams of more than `common_items` items say nothing about any of them and are left out
    common     n-grams found in `common_documents` or more of a reference corpus are ordinary language: left out too (only with a reference)
    <out>      each part: n-gram look-up, coverage of the item, verdict

Flagging ordinary phrases is the known failure of such tools, hence the two exclusions, the coverage threshold, and the recorded span.
Normalisation is the dedup kernel's: case, accents, punctuation and line breaks do not hide a leak. Items with fewer than n words
are looked for as a whole; with `n: null` every item is (the right setting for templated problems, which share phrases by design).
"""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from kernels.ngrams import Normalisation, find_grams, fold_table, gram_filter, hash_ngrams, hash_words, utf8_column, words_of
from pipelines.benchmark_items import BenchmarkFormat, as_text, read_items
from pipelines.cluster import Cluster
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe
from pipelines.stage import PartOutput, Stage, run_stage

VERSION = 1
REASON = "contaminated.ngram"
BATCH_ROWS = 1024
SPAN_CHARACTERS = 300  # of the matching text shown in `detail`

PRESETS: dict[str, dict[str, Any]] = {
    "ngram13": {"n": 13, "coverage": 0.0, "min_words": 8},  # GPT-3 (Brown et al. 2020, appendix C): any shared 13-gram
    "ngram8": {"n": 8, "coverage": 0.7, "min_words": 8},  # PaLM (Chowdhery et al. 2022, section 8): 70 % of an item's 8-grams
    "item": {"n": None, "coverage": 1.0, "min_words": 3, "symbols": True},  # the whole item, operators included: generated problems
}


class DecontaminateRecipe(Recipe):
    """What counts as a leak. `preset` fills in published values; keys beside it win."""

    n: int | None = Field(13, ge=2, description="words a n-gram; null: whole items only")
    coverage: float = Field(0.0, ge=0, le=1, description="least share of an item's n-grams that must occur; 0: one n-gram is enough")
    min_words: int = Field(8, ge=1, description="items shorter than this cannot be told from ordinary language and are not looked for")
    symbols: bool = Field(False, description="operator signs are words (mathematics, code)")
    common_items: int = Field(10, ge=1, description="n-grams of more items than this are ignored")
    reference: tuple[str, ...] = Field((), description="datasets of ordinary text whose n-grams are ignored")
    common_documents: int = Field(3, ge=1, description="... when found in at least this many of their documents")
    text: str = Field("text", description="the column to check; a list (chat messages) is read as one text")
    formats: tuple[BenchmarkFormat, ...] = Field((), description="fields of benchmark files, by file name")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and "preset" in values:
            name = values["preset"]
            if name not in PRESETS:
                raise ValueError(f"unknown decontamination preset {name!r}: {', '.join(PRESETS)}")
            return {**PRESETS[name], **{key: value for key, value in values.items() if key != "preset"}}
        return values

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(fold_digits=False, symbols=self.symbols)


def decontaminate(
    inputs: Sequence[str | Dataset],
    against: Sequence[str],
    recipe: DecontaminateRecipe,
    out: str,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    name: str | None = None,
) -> Dataset:
    """Remove the documents of `inputs` that contain items of the benchmark files or datasets `against`.

    Rejected rows have reason "contaminated.ngram" and a JSON `detail`: item, coverage (share of its n-grams), span (the text that matched).

    Raises:
        UserError: a file is missing or of an unknown format, no item can be looked for, or the inputs lack the text column.
    """
    uris = [entry.uri if isinstance(entry, Dataset) else str(entry) for entry in inputs]
    if not against:
        raise UserError("decontaminate: against what? name benchmark files or datasets")

    nameless = recipe.model_copy(update={"reference": ()})  # paths are no part of what a run is: the reference is an input, known by its digest

    def step(label: str, run: Any, payloads: list[dict], sources: Sequence[str]) -> Dataset:
        stage = Stage(name=f"decontaminate.{label}", version=VERSION, plan=lambda inputs, config: payloads, run=run)
        return run_stage(stage, sources, nameless, f"{out}/work/{label}", cluster=cluster, progress=progress)

    index = step("index", write_index, [{"against": [str(uri) for uri in against]}], [str(uri) for uri in against])
    if not index.counters["items_indexed"]:
        short = f"{index.counters['items_short']:g} have under {recipe.min_words} words"
        raise UserError(f"decontaminate: no item of {', '.join(map(str, against))} can be looked for ({short})")
    built = {"index": index.files, "digest": index.digest, "common": []}
    sources = [*uris, index.uri]
    if recipe.reference:
        payloads = [{"part": part, "number": number, **built} for number, part in enumerate(_parts(recipe.reference))]
        common = step("common", count_common, payloads, [*recipe.reference, index.uri])
        built["common"], built["digest"] = common.files, index.digest + common.digest
        sources.append(common.uri)
    payloads = [{"part": part, **built} for part in _parts(uris)]
    stage = Stage(name="decontaminate", version=VERSION, plan=lambda inputs, config: payloads, run=run_part)
    return run_stage(stage, sources, nameless, out, cluster=cluster, progress=progress, name=name)


# ----------------------------------------------------------------------------------------------------------------- index


def write_index(payload: dict, recipe: DecontaminateRecipe, output: PartOutput) -> None:
    """`items.arrow` (id, grams: distinct n-grams kept) and `grams.arrow` (length, gram, item), sorted by all three."""
    seen: set[bytes] = set()
    ids: list[str] = []
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    items = short = 0
    for uri in payload["against"]:
        for item in read_items(uri, recipe.formats):
            items += 1
            words, _, _ = words_of(item.text, recipe.normalisation)
            if words.size < recipe.min_words:
                short += 1
                continue
            key = words.tobytes()
            if key in seen:  # the same question again (one row a choice, a second split) is one item, not a common phrase
                continue
            seen.add(key)
            length = words.size if recipe.n is None else min(recipe.n, words.size)
            grams = np.empty(words.size, np.uint64)
            grams = np.unique(grams[: hash_ngrams(words, words.size, length, grams)])
            columns.append((np.full(grams.size, length, np.int32), grams, np.full(grams.size, len(ids), np.int64)))
            ids.append(item.id)
    columns = columns or [(np.empty(0, np.int32), np.empty(0, np.uint64), np.empty(0, np.int64))]
    length, gram, item = (np.concatenate(arrays) for arrays in zip(*columns, strict=True))
    order = np.lexsort((item, gram, length))
    length, gram, item = length[order], gram[order], item[order]
    starts = np.flatnonzero(np.concatenate(([True], (gram[1:] != gram[:-1]) | (length[1:] != length[:-1])))) if gram.size else np.empty(0, np.int64)
    sharers = np.diff(np.append(starts, gram.size))
    keep = np.repeat(sharers <= recipe.common_items, sharers)
    _write_arrow(output, "grams.arrow", {"length": length[keep], "gram": gram[keep], "item": item[keep]})
    _write_arrow(output, "items.arrow", {"id": pa.array(ids, pa.string())})
    indexed = int(np.unique(item[keep]).size)
    output.count(items=items, items_short=short, items_repeated=items - short - len(ids), items_common=len(ids) - indexed, items_indexed=indexed)
    output.count(grams=int(starts.size), grams_common=int((sharers > recipe.common_items).sum()))


class Index(NamedTuple):
    """The n-grams of one length: gram g belongs to items[bounds[g]:bounds[g + 1]]."""

    length: int
    grams: np.ndarray  # uint64, sorted, distinct
    bitmap: np.ndarray
    bounds: np.ndarray
    items: np.ndarray
    first: int  # position of grams[0] in the whole table of distinct n-grams


@functools.lru_cache(maxsize=2)  # once a process, not once a part
def _load_index(files: tuple[str, ...], common: tuple[str, ...], digest: str, limit: int) -> tuple[list[Index], list[str], np.ndarray]:
    """(index per n-gram length, item ids, n-grams kept per item)."""
    tables = {uri.rpartition("/")[2]: _read_arrow(uri) for uri in files}
    ids = tables["items.arrow"]["id"].to_pylist()
    length, gram, item = (tables["grams.arrow"][name].to_numpy() for name in ("length", "gram", "item"))
    new = np.concatenate(([True], (gram[1:] != gram[:-1]) | (length[1:] != length[:-1])))
    number = np.cumsum(new) - 1
    if common:
        counts = np.sum([_read_arrow(uri)["documents"].to_numpy() for uri in common], axis=0)
        rare = (counts < limit)[number]
        length, gram, item, number = length[rare], gram[rare], item[rare], number[rare]
        new = np.concatenate(([True], number[1:] != number[:-1])) if number.size else np.empty(0, bool)
    indexes = []
    for one in np.unique(length):
        here = np.flatnonzero(length == one)
        starts = np.flatnonzero(new[here])
        grams = gram[here][starts]
        indexes.append(Index(int(one), grams, gram_filter(grams), np.append(starts, here.size), item[here], int(number[here[0]])))
    return indexes, ids, np.bincount(item, minlength=len(ids))


# ------------------------------------------------------------------------------------------------------------------ match


class Hit(NamedTuple):
    """An item found in a document."""

    item: int
    coverage: float
    begin: int  # the matching bytes
    end: int


Found = list[tuple[Index, np.ndarray, np.ndarray]]  # (index, word positions, n-gram numbers)


def _matches(column: Any, indexes: list[Index], rules: Normalisation) -> Iterator[tuple[int, Found, np.ndarray, np.ndarray]]:
    """For each document with any match: (row, what was found, word starts, word ends)."""
    data, offsets = utf8_column(column)
    longest = int(np.diff(offsets).max(initial=1)) or 1
    words, grams = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    starts, ends, positions, entries = (np.empty(longest, np.int64) for _ in range(4))
    table = fold_table(rules)
    for row in range(offsets.size - 1):
        count = hash_words(data, offsets[row], offsets[row + 1], table, words, starts, ends)
        found = []
        for index in indexes:
            if count < index.length:
                continue
            total = hash_ngrams(words, count, index.length, grams)
            hits = find_grams(grams, total, index.grams, index.bitmap, positions, entries)
            if hits:
                found.append((index, positions[:hits].copy(), entries[:hits].copy()))
        if found:
            base = offsets[row]
            yield row, found, starts[:count] - base, ends[:count] - base


def _best_hit(found: Found, starts: np.ndarray, ends: np.ndarray, grams_per_item: np.ndarray, threshold: float) -> Hit | None:
    """The item of the greatest coverage at or above the threshold (ties: the longer span, then the earlier item)."""
    best: tuple[float, int, int, Hit] | None = None
    for index, positions, entries in found:
        per_item: dict[int, list[tuple[int, int]]] = {}
        for position, entry in zip(positions.tolist(), entries.tolist(), strict=True):
            for item in index.items[index.bounds[entry] : index.bounds[entry + 1]].tolist():
                per_item.setdefault(item, []).append((position, entry))
        for item, places in per_item.items():
            coverage = len({entry for _, entry in places}) / int(grams_per_item[item])
            if coverage < threshold:
                continue
            first, last = _longest_run([position for position, _ in places])
            begin, end = int(starts[first]), int(ends[last + index.length - 1])
            rank = (coverage, end - begin, -item)
            if best is None or rank > best[:3]:
                best = (*rank, Hit(item, coverage, begin, end))
    return best[3] if best else None


def _longest_run(positions: list[int]) -> tuple[int, int]:
    """First and last of the longest run of consecutive positions."""
    best = run = (positions[0], positions[0])
    for position in positions[1:]:
        run = (run[0], position) if position == run[1] + 1 else (position, position)
        best = max(best, run, key=lambda span: span[1] - span[0])
    return best


# ------------------------------------------------------------------------------------------------------------------ parts


def count_common(payload: dict, recipe: DecontaminateRecipe, output: PartOutput) -> None:
    """In how many documents of the reference part each n-gram of the index occurs: `documents` uint32, in the index's order."""
    indexes, _, _ = _load_index(tuple(payload["index"]), (), payload["digest"], 0)
    documents = np.zeros(sum(index.grams.size for index in indexes), np.uint32)
    for table in _batches(payload["part"], recipe.text, only=True):
        for _, found, _, _ in _matches(_text_column(table[recipe.text]), indexes, recipe.normalisation):
            for index, _, entries in found:
                documents[index.first + np.unique(entries)] += 1
    _write_arrow(output, f"common-{payload['number']:05d}.arrow", {"documents": documents})


def run_part(payload: dict, recipe: DecontaminateRecipe, output: PartOutput) -> None:
    """Split a part into clean and contaminated rows."""
    indexes, ids, grams_per_item = _load_index(tuple(payload["index"]), tuple(payload["common"]), payload["digest"], recipe.common_documents)
    for table in _batches(payload["part"], recipe.text):
        texts = _text_column(table[recipe.text])
        flagged = np.zeros(table.num_rows, bool)
        details: list[str] = []
        for row, found, starts, ends in _matches(texts, indexes, recipe.normalisation):
            hit = _best_hit(found, starts, ends, grams_per_item, recipe.coverage)
            if hit is None:
                continue
            flagged[row] = True
            span = texts[row].as_py().encode()[hit.begin : hit.end].decode()
            shown = span if len(span) <= SPAN_CHARACTERS else span[:SPAN_CHARACTERS] + "…"
            details.append(json.dumps({"item": ids[hit.item], "coverage": round(hit.coverage, 4), "span": shown}, ensure_ascii=False))
        output.read(table.num_rows)
        dirty = table.filter(pa.array(flagged))
        dirty = dirty.drop_columns([name for name in ("reason", "detail") if name in dirty.column_names])
        dirty = dirty.append_column("reason", pa.repeat(REASON, dirty.num_rows)).append_column("detail", pa.array(details, pa.string()))
        output.write(table.filter(pa.array(~flagged)), dirty)


def _batches(part: str, text: str, only: bool = False) -> Iterator[pa.Table]:
    """The part's rows, or their text alone."""
    with fsspec.open(part, "rb") as file, pq.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        if text not in names:
            raise UserError(f"{part}: no column {text!r} (columns: {', '.join(names)})")
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=[text] if only else None):
            yield pa.Table.from_batches([batch])


def _text_column(column: pa.ChunkedArray) -> pa.Array:
    """Strings as they are; anything nested as its text."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.combine_chunks().cast(pa.large_string())
    return pa.array([as_text(value) for value in column.to_pylist()], pa.large_string())


def _parts(uris: Sequence[str]) -> list[str]:
    return [part for uri in uris for part in ([uri] if uri.endswith(".parquet") else Dataset.open(uri).parts)]


def _write_arrow(output: PartOutput, name: str, columns: dict[str, Any]) -> None:
    table = pa.table(columns)
    with output.file(name) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), table.schema) as writer:
        writer.write_table(table)


def _read_arrow(uri: str) -> pa.Table:
    with fsspec.open(uri, "rb") as file:
        return pa.ipc.open_file(pa.PythonFile(file, mode="r")).read_all()
