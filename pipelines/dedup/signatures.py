"""What identifies a document, part by part: its canonical URL, a digest of its text, and its MinHash band keys.

These are the only steps that read text before the last one; everything between works on keys of a few bytes.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from kernels import minhash
from pipelines.arrow_files import write_arrow
from pipelines.dataset import open_part
from pipelines.dedup.exchange import bucket_of, column, documents, files_of, receive, row_of, send
from pipelines.dedup.rank import read_columns, read_rank
from pipelines.dedup.recipe import DedupRecipe
from pipelines.dedup.urls import canonical_url
from pipelines.errors import UserError
from pipelines.stage import PartOutput

BATCH_ROWS = 1024  # texts in memory at a time


def write_url_keys(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Send (canonical URL's digest, document, id, sort key) to the digest's bucket."""
    table = read_columns(payload["part"], ["id", "url"])
    rows = table.num_rows
    urls = table["url"].to_pylist() if "url" in table.column_names else [None] * rows
    chosen = np.array([row for row, url in enumerate(urls) if url], np.int64)
    high, low = _digests([canonical_url(urls[row]).encode() for row in chosen])
    columns = {"high": high, "low": low, "document": documents(payload["index"], chosen), "id": ids_of(table, payload["index"]).take(chosen)}
    if chosen.size:
        by_size = any(key.removeprefix("-") == "text_bytes" for key in recipe.url_survivor)
        sizes = _text_bytes(payload["part"], recipe.text) if by_size else pa.nulls(rows)
        ranks = read_rank(payload["part"], recipe.url_survivor, rows, sizes)
        columns |= {name: values.take(chosen) for name, values in ranks.items()}
    buckets = payload["buckets"]
    send(output, f"urls-{payload['index']:05d}.arrow", pa.table(columns), bucket_of(low, buckets), buckets)
    output.count(urls=int(chosen.size))


def write_signatures(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Send text digests and band keys of the rows that are no URL duplicates to their buckets.

    Also writes `rows-<part>.arrow`: for every row (digest high, low, bytes of text), for the steps that choose survivors.
    """
    index, buckets = payload["index"], payload["buckets"]
    lost = row_of(column(receive(files_of(payload["captures"]), index), "document")) if payload["captures"] else np.empty(0, np.int64)
    highs, lows, sizes, keys, counts = [], [], [], [], []
    for texts in read_texts(payload["part"], recipe.text):
        high, low = _digests([text.as_buffer() if text.is_valid else b"" for text in texts])
        highs.append(high)
        lows.append(low)
        sizes.append(pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False).astype(np.int64))
        if recipe.minhash is not None:
            m = recipe.minhash
            images, shingles = minhash.signatures(
                texts, n=m.n, count=m.count, seed=m.seed, family=m.permutations, bits=m.bits, rules=m.normalisation
            )
            keys.append(minhash.band_keys(images, m.bands, m.rows))
            counts.append(shingles)
    high, low, size = (np.concatenate(arrays) for arrays in (highs, lows, sizes))
    rows = high.size
    alive = np.ones(rows, bool)
    alive[lost] = False
    numbers = documents(index, rows)

    if recipe.exact.text:
        table = pa.table({"key": low[alive], "high": high[alive], "document": numbers[alive]})
        send(output, f"texts-{index:05d}.arrow", table, bucket_of(low[alive], buckets), buckets)
    if recipe.minhash is not None:
        signed = alive & (np.concatenate(counts) > 0)
        flat = np.concatenate(keys)[signed].ravel()
        table = pa.table({"key": flat, "document": np.repeat(numbers[signed], recipe.minhash.bands)})
        if recipe.minhash.verify is not None:  # equal texts need no comparison, and a page held a million times would be compared as often
            table = table.append_column("text", pa.array(np.repeat(low[signed], recipe.minhash.bands)))
        send(output, f"bands-{index:05d}.arrow", table, bucket_of(flat, buckets), buckets)
        output.count(signatures=int(signed.sum()), shingles=int(np.concatenate(counts)[alive].sum()))
    write_arrow(output, f"rows-{index:05d}.arrow", {"high": high, "low": low, "text_bytes": size})
    output.count(documents=rows, bytes=int(size.sum()))


def ids_of(table: pa.Table, part: int, begin: int = 0) -> pa.Array:
    """The ids of rows `begin`... of a part; a row of a table without ids is called by its place."""
    if "id" in table.column_names:
        return table["id"].combine_chunks().cast(pa.string())
    return pa.array([f"{part}:{begin + row}" for row in range(table.num_rows)], pa.string())


def read_texts(part: str, name: str) -> Iterator[pa.Array]:
    """The texts of a part, BATCH_ROWS at a time."""
    with open_part(part) as parquet:
        if name not in parquet.schema_arrow.names:
            raise UserError(f"{part}: no column {name!r} (columns: {', '.join(parquet.schema_arrow.names)})")
        if not parquet.metadata.num_rows:
            yield pa.array([], pa.large_string())
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=[name]):
            yield batch.column(0).cast(pa.large_string())


def _text_bytes(part: str, name: str) -> pa.Array:
    return pa.concat_arrays([pc.fill_null(pc.binary_length(texts), 0).cast(pa.int64()) for texts in read_texts(part, name)])


def _digests(values: list) -> tuple[np.ndarray, np.ndarray]:
    """xxh3-128 of byte strings as two uint64 arrays (high, low)."""
    digests = np.frombuffer(b"".join(xxhash.xxh3_128_digest(value) for value in values), ">u8").reshape(-1, 2)
    return digests[:, 0].astype(np.uint64), digests[:, 1].astype(np.uint64)
