"""Deduplication of a generated corpus with planted clusters: time and memory as the corpus grows, and what was recovered.

    python benchmarks/dedup_scale.py [--documents 10000 100000 1000000] [--workers 2] [--folder TMP] [--verify 0.7]

Documents of 130 to 260 random words (1.0 to 2.0 KB), each a function of its number alone. In every forty, a family of 2 to 6 copies:
- families of two are a document and an edit of known Jaccard similarity (0.75 to 0.95), which theory says how often to find;
- larger ones are exact copies and edits of similarity 0.95, all of which must be found.
Copies lie scattered over all parts. Printed per size: seconds, documents a second, the largest total resident memory of this process and all
its workers (pages they share are counted in each), bytes the steps wrote, and what was recovered. Then the growth of time over the growth of documents.
"""

import argparse
import functools
import os
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from kernels.minhash import match_probability
from pipelines.cluster import open_cluster
from pipelines.dedup import DedupRecipe, dedup

PART_ROWS = 10_000
BLOCK = 40  # documents with one family among them
STRIDE = 7_368_787  # coprime to every size that is a power of ten: scatters neighbours
SIMILARITIES = (0.75, 0.8, 0.85, 0.9, 0.95)
SHINGLE = 5


@functools.cache
def vocabulary() -> np.ndarray:
    draw = np.random.default_rng(0)
    letters = draw.integers(97, 123, (50_000, 10)).astype(np.uint8)
    return np.array([bytes(row[:length]).decode() for row, length in zip(letters, draw.integers(4, 11, 50_000), strict=True)], object)


def document(number: int) -> tuple[str, str]:
    """(id "<family>-<copy>-<similarity to copy 0>", text) of a document by its number."""
    block, place = divmod(number, BLOCK)
    size = 2 + block % 5
    family, copy = (block * BLOCK, place) if place < size else (number, 0)
    draw = np.random.default_rng(family)
    words = vocabulary()[draw.integers(0, 50_000, int(draw.integers(130, 260)))]
    similarity = 1.0
    if copy and (size == 2 or copy % 2):
        shingles = words.size - SHINGLE + 1
        wanted = SIMILARITIES[block // 5 % 5] if size == 2 else 0.95
        changed = round(shingles * (1 - wanted) / (1 + wanted))  # the last `changed` words, so as many shingles
        similarity = (shingles - changed) / (shingles + changed)
        words[-changed:] = vocabulary()[np.random.default_rng((family, copy)).integers(0, 50_000, changed)]
    return f"{family}-{copy}-{similarity:.4f}", " ".join(words)


def write_part(job: tuple[str, int, int]) -> str:
    folder, part, total = job
    rows = [document(row * STRIDE % total) for row in range(part * PART_ROWS, min((part + 1) * PART_ROWS, total))]
    path = f"{folder}/part-{part:05d}.parquet"
    pq.write_table(pa.table({"id": [row[0] for row in rows], "text": [row[1] for row in rows]}), path, compression="zstd")
    return path


class Memory:
    """The largest total resident memory of this process and its children, sampled ten times a second."""

    def __enter__(self) -> "Memory":
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.1):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:  # it ended between listing and asking
                    continue
            self.peak = max(self.peak, total)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def report(result, threshold: float | None, minhash) -> None:
    frames = [result.scan(["id", "cluster_id"]).collect(), result.scan_rejected(["id", "cluster_id"]).collect()]
    frame = pl.concat(frames).with_columns(pl.col("id").str.split("-").list.to_struct(fields=["family", "copy", "similarity"])).unnest("id")
    frame = frame.with_columns(pl.col("similarity").cast(pl.Float64))
    families = frame.group_by("family").agg(size=pl.len(), pieces=pl.col("cluster_id").n_unique(), similarity=pl.col("similarity").min())
    mixed = (frame.group_by("cluster_id").agg(families=pl.col("family").n_unique())["families"] > 1).sum()
    larger = families.filter(pl.col("size") > 2)
    print(f"  families of three to six: {(larger['pieces'] == 1).sum():,} of {larger.height:,} whole; clusters that mix families: {mixed}")
    pairs = families.filter(pl.col("size") == 2)
    for wanted in SIMILARITIES:
        some = pairs.filter((pl.col("similarity") - wanted).abs() < 0.025)
        true = some["similarity"].to_numpy()
        theory = match_probability(true, minhash.bands, minhash.rows) * (true >= (threshold or 0))
        error = np.sqrt((theory * (1 - theory)).sum()) / max(some.height, 1)
        found = (some["pieces"] == 1).mean() or 0
        print(f"  pairs of similarity {wanted}: {found:.2%} of {some.height:,} found, theory {theory.mean():.2%}, standard error {100 * error:.2f} points")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--buckets", type=int, default=None, help="partitions of the global steps (default: by size)")
    parser.add_argument("--verify", type=float, default=None, help="also verify candidates by true Jaccard")
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    arguments = parser.parse_args()
    recipe = DedupRecipe(buckets=arguments.buckets, minhash={"verify": arguments.verify})
    took = {}
    for documents in arguments.documents:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, open_cluster(arguments.workers) as cluster:
            begin = time.monotonic()
            jobs = [(folder, part, documents) for part in range(-(-documents // PART_ROWS))]
            paths = [path for _, path in sorted(cluster.map(write_part, jobs))]
            generated = time.monotonic() - begin
            stages: dict[str, float] = defaultdict(float)
            last = [time.monotonic()]

            def note(event, stages=stages, last=last):
                stages[event.stage.removeprefix("dedup.")] += time.monotonic() - last[0]
                last[0] = time.monotonic()

            with Memory() as memory:
                begin = time.monotonic()
                result = dedup(paths, recipe, f"{folder}/out", cluster, note)
                took[documents] = time.monotonic() - begin
            texts = sum(os.path.getsize(path) for path in paths)
            written = sum(file.stat().st_size for file in Path(f"{folder}/out").rglob("*") if file.is_file())
            print(
                f"{documents:,} documents, {arguments.workers} workers: {took[documents]:.1f} s, {documents / took[documents]:,.0f} documents/s, "
                f"{memory.peak / 1e9:.2f} GB; input {texts / 1e9:.2f} GB, written {written / 1e9:.2f} GB (generated in {generated:.0f} s)"
            )
            print("  " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items()))
            report(result, arguments.verify, recipe.minhash)
    small, large = min(took), max(took)
    if small < large:
        print(f"{large / small:.0f}x the documents cost {took[large] / took[small]:.1f}x the time")


if __name__ == "__main__":
    main()
