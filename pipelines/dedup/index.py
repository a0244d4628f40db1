"""What a later crawl must know of the earlier ones: their survivors' keys, sorted and partitioned, a folder a crawl.

    <index>/crawl-00000/            a closed dataset; crawl-00001, ... in the order in which the crawls came
      files/urls-*.arrow            (high, low, document, id)      one file a bucket of the key space, sorted by place in it
      files/texts-*.arrow           (key, high, document)
      files/bands-*.arrow           (key, document[, text])
      files/rows-*.arrow            (row, id, high, low, cluster_id), one file a PART_ROWS documents
      files/sets-*.arrow            (row, shingles), with `minhash.verify` only: their texts may be gone by then

A crawl is added by a stage like any other, so it is there whole or not at all, and a crawl that is already there is recognised by
what went into it: run again, it is compared with the crawls before it and adds nothing. A later run may have another number of buckets: keys
are sorted by their place in the key space, so it reads the one or two partitions that its bucket overlaps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from pipelines.arrow_files import write_arrow
from pipelines.dataset import Dataset
from pipelines.dedup.exchange import ROW_BITS, channel, column, documents, files_of, part_of, place_of, read, receive, row_of
from pipelines.dedup.recipe import DedupRecipe
from pipelines.errors import UserError
from pipelines.receipts import load_json
from pipelines.recipe import digest_of
from pipelines.stage import PartOutput, Stage, digest_of_inputs

PART_ROWS = 1 << 17  # documents a rows file: some 10 MB, and some 150 MB of shingle sets
KINDS = {"urls": "low", "texts": "key", "bands": "key"}  # kind of key -> the column that places it


@dataclass(frozen=True)
class Index:
    """The earlier crawls as one run sees them, in order; the run's own crawl, by what went into it, and where it is or will be."""

    earlier: tuple[Dataset, ...]
    crawl: str
    own: str

    @property
    def keys(self) -> int:
        """Keys of all kinds of the earlier crawls."""
        return int(sum(crawl.counters["keys"] for crawl in self.earlier))

    @property
    def uris(self) -> list[str]:
        return [crawl.uri for crawl in self.earlier]

    @property
    def bases(self) -> list[int]:
        """The first part number of each earlier crawl, and of the new one."""
        return [0, *np.cumsum([crawl.meta["extra"]["parts"] for crawl in self.earlier]).tolist()]

    def partitions(self, bucket: int, buckets: int) -> dict[str, list[dict[str, Any]]]:
        """By kind of key, the files that overlap a bucket, with the range of places to take from them, as a payload names them."""
        low, high = (-(-(edge << 32) // buckets) for edge in (bucket, bucket + 1))
        found: dict[str, list[dict[str, Any]]] = {}
        for kind, key in KINDS.items():
            found[kind] = []
            for crawl, base in zip(self.earlier, self.bases, strict=False):
                theirs = crawl.meta["extra"]["buckets"]
                if kind in crawl.meta["extra"]["kinds"]:
                    files = files_of(channel(crawl, kind, theirs))[low * theirs >> 32 : ((high - 1) * theirs >> 32) + 1]
                    found[kind] += [{"file": file, "base": base, "key": key, "low": low, "high": high} for file in files]
        return found

    def parts(self) -> list[dict[str, Any]]:
        """A payload a rows file: its part number, its rows, and its sets."""
        return [
            {"index": base + part, "part": None, "rows": rows, "sets": sets}
            for crawl, base in zip(self.earlier, self.bases, strict=False)
            for part, (rows, sets) in enumerate(zip(*(files_of(channel(crawl, kind, crawl.meta["extra"]["parts"])) for kind in ("rows", "sets")), strict=True))
        ]


def open_index(uri: str, recipe: DedupRecipe, inputs: Sequence[str]) -> Index:
    """The index as the crawl `inputs` sees it: the crawls before its own, all if it is new.

    Raises:
        UserError: the index was made with other parameters, or another run has begun to extend it and not finished.
    """
    uri = uri.rstrip("/")
    config = recipe.model_dump(mode="json")
    crawl = digest_of({"recipe": config, "inputs": digest_of_inputs(inputs)})
    earlier: list[Dataset] = []
    while Dataset.exists(own := f"{uri}/crawl-{len(earlier):05d}"):
        found = Dataset.open(own)
        for field in ("exact", "minhash"):
            if found.meta["config"][field] != config[field]:
                raise UserError(f"{uri}: the index was made with other values of {field}; use the same or another index")
        if found.meta["extra"]["crawl"] == crawl:
            return Index(tuple(earlier), crawl, own)
        earlier.append(found)
    fs, path = fsspec.url_to_fs(own)
    plan = load_json(fs, f"{path}/plan.json")
    if plan is not None and plan["parts"][0]["crawl"] != crawl:
        raise UserError(f"{own}: another run has begun to extend the index; finish it (its command again) or remove that folder")
    return Index(tuple(earlier), crawl, own)


def read_index(partitions: Sequence[dict[str, Any]]) -> pa.Table:
    """Keys of earlier crawls in a bucket, oldest first, their documents numbered as in this run."""
    tables = [pa.table({})]
    for partition in partitions:
        table = read(partition["file"])
        begin, end = np.searchsorted(place_of(column(table, partition["key"])), (partition["low"], partition["high"]))
        table = table.slice(begin, end - begin)
        document = column(table, "document") + documents(partition["base"], 1)[0]
        tables.append(table.set_column(table.column_names.index("document"), "document", pa.array(document)))
    table = pa.concat_tables(tables, promote_options="permissive")
    return table.sort_by("document") if table.num_rows else table


def read_rows(file: str, document: np.ndarray) -> pa.Table:
    """The rows of earlier documents of one part."""
    rows = read(file)
    return rows.take(np.searchsorted(column(rows, "row"), row_of(document))).combine_chunks()


def index_stage(index: Index, recipe: DedupRecipe, kinds: Sequence[str], survivors: Dataset, writers: int, buckets: int, parts: int) -> Stage:
    """The stage that adds a run's crawl, from what `pipelines.dedup.survivors` sent."""
    tables = ["rows", "sets"] if recipe.minhash is not None and recipe.minhash.verify is not None else ["rows"]
    sizes = dict.fromkeys(kinds, buckets) | dict.fromkeys(tables, parts)
    base = index.bases[-1]
    payloads = [
        {"kind": kind, "number": number, "survivors": channel(survivors, kind, writers, base), "crawl": index.crawl}
        for kind, size in sizes.items()
        for number in range(size)
    ]
    facts = {"crawl": index.crawl, "kinds": list(kinds), "buckets": buckets, "parts": parts}
    return Stage(name="dedup.index", version=1, plan=lambda inputs, config: payloads, run=_write, close=lambda receipts, config: facts)


def _write(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """A bucket of one kind of key, sorted by place; or a part's rows or sets, sorted by row."""
    kind, number = payload["kind"], payload["number"]
    table = receive(files_of(payload["survivors"]), number)
    order = np.argsort(place_of(column(table, KINDS[kind])) if kind in KINDS else column(table, "row"), kind="stable")
    write_arrow(output, f"{kind}-{number:05d}.arrow", table.take(order))
    output.count(keys=table.num_rows if kind in KINDS else 0)


def index_parts(rows: int) -> int:
    """Rows files of a crawl of so many documents."""
    return -(-max(rows, 1) // PART_ROWS)


def number_in_index(document: np.ndarray, base: int, first_rows: Sequence[int]) -> np.ndarray:
    """Numbers of this run's documents in the index: all rows of all parts in a line, cut every PART_ROWS."""
    flat = np.asarray(first_rows, np.int64)[part_of(document) - base] + row_of(document)
    return (flat // PART_ROWS).astype(np.uint64) << np.uint64(ROW_BITS) | (flat % PART_ROWS).astype(np.uint64)
