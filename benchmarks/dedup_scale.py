"""Deduplication end to end on a generated corpus with known clusters: time and memory as the corpus grows.

    python benchmarks/dedup_scale.py [--documents 20000 100000] [--workers 2] [--folder TMP]

A corpus is a function of its size alone: documents of 80 to 160 random words, a tenth of them in clusters of 2 to 6 (exact copies, and copies
with one word in a hundred replaced). Printed per size: seconds by stage, documents a second, the largest total resident memory of this process
and its workers, and how the clusters found compare with those planted. The last line is the growth of time over the growth of documents.
"""

import argparse
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

from pipelines.cluster import open_cluster
from pipelines.dedup import DedupRecipe, dedup

PART_ROWS = 10_000


def write_corpus(folder: Path, documents: int) -> list[str]:
    """Parquet parts with columns id ("<family>-<copy>"), text; families lie scattered over the parts."""
    draw = np.random.default_rng(documents)
    letters = draw.integers(97, 123, (50_000, 7)).astype(np.uint8)
    vocabulary = np.array([bytes(row).decode() for row in letters])
    rows: list[tuple[str, str]] = []
    family = 0
    while len(rows) < documents:
        words = vocabulary[draw.integers(0, vocabulary.size, int(draw.integers(80, 160)))]
        copies = int(draw.integers(2, 7)) if draw.random() < 0.027 else 1  # 0.027 * 4 / (1 + 0.027 * 3) = a tenth
        for copy in range(copies):
            edited = words.copy()
            if copy % 2:
                edited[draw.integers(0, words.size, 1)] = vocabulary[draw.integers(0, vocabulary.size)]
            rows.append((f"{family}-{copy}", " ".join(edited)))
        family += 1
    order = draw.permutation(documents)
    paths = []
    for begin in range(0, documents, PART_ROWS):
        chosen = [rows[place] for place in order[begin : begin + PART_ROWS]]
        path = folder / f"part-{begin // PART_ROWS:05d}.parquet"
        pq.write_table(pa.table({"id": [row[0] for row in chosen], "text": [row[1] for row in chosen]}), path)
        paths.append(str(path))
    return paths


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


def planted_and_found(paths: list[str], result) -> tuple[int, int, int]:
    """(planted pairs of a family's first document with another, of these in one cluster, clusters that mix families)."""
    frame = pl.concat([result.scan(["id", "cluster_id"]).collect(), result.scan_rejected(["id", "cluster_id"]).collect()])
    frame = frame.with_columns(family=pl.col("id").str.split("-").list.first())
    families = frame.group_by("family").agg(pl.len(), pl.col("cluster_id").n_unique().alias("pieces"))
    planted = int((families["len"] - 1).sum())
    mixed = int((frame.group_by("cluster_id").agg(pl.col("family").n_unique())["family"] > 1).sum())
    return planted, planted - int((families["pieces"] - 1).sum()), mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--buckets", type=int, default=None, help="partitions of the global steps (default: by size)")
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    arguments = parser.parse_args()
    took = {}
    for documents in arguments.documents:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, open_cluster(arguments.workers) as cluster:
            paths = write_corpus(Path(folder), documents)
            stages: dict[str, float] = defaultdict(float)
            last = [time.monotonic()]

            def note(event, stages=stages, last=last):
                stages[event.stage.removeprefix("dedup.")] += time.monotonic() - last[0]
                last[0] = time.monotonic()

            with Memory() as memory:
                begin = time.monotonic()
                result = dedup(paths, DedupRecipe(buckets=arguments.buckets), f"{folder}/out", cluster, note)
                took[documents] = time.monotonic() - begin
            planted, found, mixed = planted_and_found(paths, result)
        speed = documents / took[documents]
        print(f"{documents:,} documents, {arguments.workers} workers: {took[documents]:.1f} s, {speed:,.0f} documents/s, {memory.peak / 1e9:.2f} GB")
        print(f"  planted pairs found {found:,} of {planted:,} ({found / max(planted, 1):.2%}), clusters that mix families {mixed}")
        print("  " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items()))
    small, large = min(took), max(took)
    if small < large:
        print(f"{large / small:.1f}x the documents cost {took[large] / took[small]:.1f}x the time")


if __name__ == "__main__":
    main()
