"""MinHash deduplication end to end, documents a second on one core, against datatrove and a regex shingler with rensa: one run, same documents.

    .venv-peers/bin/python benchmarks/dedup_speed.py [--documents 2000] [--passes 3] [--data FOLDER]      (make peers sets that environment up)

Everyone starts from a Parquet file of texts and ends with a file of the survivors, with FineWeb's parameters: 5-word shingles, 14 bands x 8
rows, 64-bit hashes. In turn, pass by pass, one thread each; times are CPU seconds of the process and its children, the best pass counts.
datatrove runs its four steps (signatures, buckets, clusters, filter) between its own reader and writer, on fewer documents because it is slow.
The others shingle with a regex (lower-cased words) and hash with rensa's batch function, which reads all shingles of 500 documents at a time,
or document by document with datasketch; rensa flags every copy but those of earlier batches, so it removes more. Then
the decisions: which planted near-copies each one removed, and where they differ from ours.
Words differ a little (datatrove splits with spaCy, ours with a table of its own), so shingles do; the last line compares with datasketch
on our own shingle hashes, where nothing may differ.
"""

import argparse
import gzip
import json
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kernels import minhash
from kernels.ngrams import ngrams_of
from pipelines.dedup import DedupRecipe, dedup

N, BANDS, ROWS = 5, 14, 8
WORD = re.compile(r"\w+")


def documents(count: int, data: Path | None) -> list[str]:
    """About 10 KB each; every tenth is an edit of an earlier one (0.1 % to 3 % of its words replaced: Jaccard of about 0.99 to 0.75)."""
    draw = np.random.default_rng(0)
    if data is not None:
        with gzip.open(data / "text/openstax-textbooks.jsonl.gz", "rt", encoding="utf-8") as file:
            whole = "\n\n".join(json.loads(line)["text"] for line in file)
        texts = [whole[start : start + 10_000] for start in range(0, len(whole) - 10_000, 10_000)]
    else:
        vocabulary = ["".join(map(chr, draw.integers(97, 123, draw.integers(2, 10)))) for _ in range(20_000)]
        texts = [" ".join(vocabulary[min(rank, 20_000) - 1] for rank in draw.zipf(1.3, 1600)) for _ in range(count)]
    texts = texts[:count]
    for place in range(9, len(texts), 10):
        words = texts[place - 5].split(" ")
        for at in draw.integers(0, len(words), int(len(words) * draw.uniform(0.001, 0.03))):
            words[at] = f"x{''.join(map(chr, draw.integers(97, 123, 6)))}"
        texts[place] = " ".join(words)
    return texts


def ours(file: Path, out: Path) -> set[str]:
    recipe = DedupRecipe(exact={"url": False, "text": False}, minhash={"n": N, "bands": BANDS, "rows": ROWS})
    return set(dedup([str(file)], recipe, str(out)).scan_rejected(["id"]).collect()["id"])


def shingles(text: str) -> Iterator[str]:
    words = WORD.findall(text.lower())
    return (" ".join(words[i : i + N]) for i in range(max(1, len(words) - N + 1)))


def with_rensa(file: Path, out: Path) -> set[str]:
    from rensa import RMinHash, RMinHashLSH

    table = pq.read_table(file)
    lsh = RMinHashLSH(threshold=0.8, num_perm=BANDS * ROWS, num_bands=BANDS)
    removed: set[str] = set()
    done = 0
    for batch in table.to_batches(max_chunksize=500):
        matrix = RMinHash.digest_matrix_from_token_sets([list(shingles(text)) for text in batch["text"].to_pylist()], BANDS * ROWS, 1)
        flags = lsh.insert_matrix_and_query_duplicate_flags(matrix, start_key=done)
        done += len(batch)
        removed |= {identifier for identifier, flag in zip(batch["id"].to_pylist(), flags, strict=True) if flag}
    keep = pa.array([identifier not in removed for identifier in table["id"].to_pylist()])
    out.mkdir()
    pq.write_table(table.filter(keep), out / "kept.parquet", compression="zstd")
    return removed


def with_datasketch(file: Path, out: Path) -> set[str]:
    import xxhash
    from datasketch import MinHash, MinHashLSH

    table = pq.read_table(file)
    first = MinHash(num_perm=BANDS * ROWS, hashfunc=xxhash.xxh3_64_intdigest, scheme="affine64")
    lsh = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    removed = set()
    for identifier, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
        sketch = MinHash(num_perm=BANDS * ROWS, hashfunc=xxhash.xxh3_64_intdigest, scheme="affine64", permutations=first.permutations)
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        if lsh.query(sketch):
            removed.add(identifier)
        lsh.insert(identifier, sketch)
    keep = pa.array([identifier not in removed for identifier in table["id"].to_pylist()])
    out.mkdir()
    pq.write_table(table.filter(keep), out / "kept.parquet", compression="zstd")
    return removed


def with_datatrove(file: Path, out: Path) -> set[str]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(n_grams=N, num_buckets=BANDS, hashes_per_bucket=ROWS, hash_config=HashConfig(precision=64))
    reader = ParquetReader(str(file.parent), glob_pattern=file.name)
    signatures, buckets, remove = (str(out / step) for step in ("signatures", "buckets", "remove"))
    steps = [
        ([reader, MinhashDedupSignature(signatures, config)], 1),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], BANDS),
        ([MinhashDedupCluster(buckets, remove, config=config)], 1),
        ([reader, MinhashDedupFilter(remove, exclusion_writer=ParquetWriter(str(out / "removed"))), ParquetWriter(str(out / "kept"))], 1),
    ]
    for pipeline, tasks in steps:
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(out / "logs"), skip_completed=False).run()
    return {identifier for path in (out / "removed").glob("*.parquet") for identifier in pq.read_table(path)["id"].to_pylist()}


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def write(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"id": [f"{row:06d}" for row in range(len(texts))], "text": texts}), folder / "in.parquet", compression="zstd")
    return folder / "in.parquet"


def compare_with_datasketch(texts: list[str]) -> str:
    from datasketch import MinHash

    sketches = []
    for text in texts:
        sketch = MinHash(num_perm=BANDS * ROWS, scheme="affine64", hashfunc=lambda gram: gram)
        sketch.update_batch(ngrams_of(text, N).tolist())
        sketches.append(sketch.hashvalues)
    affine, _ = minhash.signatures(pa.array(texts), n=N, count=BANDS * ROWS, family="affine64")
    return "equal" if np.array_equal(affine, np.array(sketches, np.uint64)) else "DIFFERENT"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--slow-documents", type=int, default=200, help="for datatrove, which does some forty a second")
    parser.add_argument("--passes", type=int, default=3)
    default = Path(os.environ.get("GRISTMILL_DATA") or Path(__file__).resolve().parents[2] / "shared/data")
    parser.add_argument("--data", type=Path, default=default if default.is_dir() else None, help="real texts; generated ones without it")
    arguments = parser.parse_args()
    texts = documents(arguments.documents, arguments.data)
    size = np.mean([len(text.encode()) for text in texts])
    print(f"{len(texts)} documents of {size / 1000:.1f} KB, {'real' if arguments.data else 'generated'} text, best of {arguments.passes} passes\n")
    os.environ["DATATROVE_COLORIZE_LOGS"] = "0"
    methods: dict[str, Callable[[Path, Path], set[str]]] = {"ours": ours, "regex + rensa": with_rensa, "regex + datasketch, xxh3": with_datasketch}
    methods["datatrove"] = with_datatrove
    best: dict[str, float] = {}
    removed: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = {"few": write(folder / "few", texts[: arguments.slow_documents]), "all": write(folder / "all", texts)}
        ours(write(folder / "compile", texts[:2]), folder / "compiled")
        for _ in range(arguments.passes):
            for name, method in list(methods.items()):
                count = arguments.slow_documents if name == "datatrove" else len(texts)
                try:
                    begin = cpu_seconds()
                    removed[name] = method(files["few" if name == "datatrove" else "all"], folder / "out")
                    best[name] = max(best.get(name, 0), count / (cpu_seconds() - begin))
                except ImportError as error:
                    print(f"{name}: not installed here ({error})", file=sys.stderr)
                    del methods[name]
                shutil.rmtree(folder / "out", ignore_errors=True)
        few = ours(files["few"], folder / "out")

    planted = {f"{place:06d}" for place in range(9, len(texts), 10)}
    print("| end to end | docs/s/core | MB/s/core | ours is | removed | planted among them | as ours |\n|---|---|---|---|---|---|---|")
    for name in methods:
        mine = few if name == "datatrove" else removed["ours"]
        target = {identifier for identifier in planted if name != "datatrove" or int(identifier) < arguments.slow_documents}
        # Which copy of a pair goes is a matter of taste (sort key, order): a removal agrees if the pair's other copy went.
        pair = {identifier if identifier in planted else f"{int(identifier) + 5:06d}" for identifier in removed[name]}
        ours_pair = {identifier if identifier in planted else f"{int(identifier) + 5:06d}" for identifier in mine}
        print(
            f"| {name} | {best[name]:,.0f} | {best[name] * size / 1e6:.1f} | {best['ours'] / best[name]:.1f}x | {len(removed[name])} "
            f"| {len(pair & target)} of {len(target)} | {len(pair & ours_pair)} of {len(pair | ours_pair)} |"
        )
    print(f"\nsignatures of 300 documents on our own shingle hashes, ours (affine64) and datasketch: {compare_with_datasketch(texts[:300])}")


if __name__ == "__main__":
    main()
