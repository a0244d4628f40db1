"""Exact repeated substrings: the windowed pipeline against a suffix array (libdivsufsort), same texts, same run, decisions compared.

    python benchmarks/dedup_spans.py [--megabytes 20 60] [--documents 0] [--data FOLDER]

Each side runs in a process of its own, one thread: CPU seconds and peak memory above what its imports take. Both find every substring of at least
100 bytes that stands twice and cut all copies; the suffix array holds one string (4 bytes a suffix, 4 for the common prefixes), ours goes through
Parquet parts, files and receipts as `gristmill dedup-spans` does. Texts are pages of real books, each tenth with a passage of another one.
`--documents N` runs ours alone on N generated documents of 10 KB, for the memory bound.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LENGTH = 100
PAGE = 10_000


def pages(megabytes: float, data: Path | None) -> list[str]:
    """ASCII, about 10 KB each; the real text first, then generated words."""
    draw = np.random.default_rng(0)
    wanted = int(megabytes * 1e6 / PAGE)
    texts: list[str] = []
    for name in ("openstax-textbooks", "english-novels", "world-factbook") if data is not None else ():
        with gzip.open(data / f"text/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            whole = "\n\n".join(json.loads(line)["text"] for line in file).encode("ascii", "ignore").decode()
        texts += [whole[at : at + PAGE] for at in range(0, len(whole) - PAGE, PAGE)]
    vocabulary = np.array(["".join(map(chr, draw.integers(97, 123, draw.integers(2, 10)))) for _ in range(20_000)])
    while len(texts) < wanted:
        texts.append(" ".join(vocabulary[np.minimum(draw.zipf(1.3, 1600), 20_000) - 1])[:PAGE])
    texts = texts[:wanted]
    for place in range(9, len(texts), 10):
        other, at = int(draw.integers(0, place)), int(draw.integers(0, PAGE // 2))
        texts[place] = texts[place][:at] + texts[other][at : at + 2000] + texts[place][at + 2000 :]
    return texts


def write(texts: list[str], folder: Path, parts: int) -> list[str]:
    paths = []
    for part in range(parts):
        paths.append(str(folder / f"part-{part:05d}.parquet"))
        some = texts[part * len(texts) // parts : (part + 1) * len(texts) // parts]
        pq.write_table(pa.table({"id": [f"{part}-{row}" for row in range(len(some))], "text": some}), paths[-1], compression="zstd", row_group_size=4096)
    return paths


def ours(paths: list[str], out: str) -> int:
    from pipelines.dedup.spans import SpanRecipe, dedup_spans

    dataset = dedup_spans(paths, SpanRecipe(unit="byte", length=LENGTH, count="occurrences", keep="none", min_characters=1), out)
    gone = int(dataset.counters["removed_bytes"])
    print("   ", {name: f"{value:,.0f}" for name, value in dataset.counters.items()}, flush=True)
    return gone


def suffix_array(paths: list[str], out: str) -> int:
    import pydivsufsort

    texts = [text.encode() for path in paths for text in pq.read_table(path, columns=["text"])["text"].to_pylist()]
    data = b"\0".join(texts) + b"\0"
    suffixes = pydivsufsort.divsufsort(data)
    common = pydivsufsort.kasai(data, suffixes)[:-1]
    end = np.cumsum([len(text) + 1 for text in texts], dtype=np.int32) - 1  # of each document
    change = np.zeros(len(data) + 1, np.int32)
    for block in range(0, common.size, 1 << 22):
        near = np.flatnonzero(common[block : block + (1 << 22)] >= LENGTH) + block
        at = np.unique(np.concatenate((suffixes[near], suffixes[near + 1])))
        at = at[end[np.searchsorted(end, at)] - at >= LENGTH]  # the separator takes no part in a match
        np.add.at(change, at, 1)
        np.add.at(change, at + LENGTH, -1)
    return int((np.cumsum(change) > 0).sum())


def peak_memory() -> float:
    """Megabytes that this process ever held. Not `ru_maxrss`: a child's begins with its parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3


def measured(run, paths: list[str], queue) -> None:
    import pipelines.dedup.spans  # noqa: F401 - imports and compiled loops are not what is measured

    with tempfile.TemporaryDirectory() as folder:
        warm = write([f"warm up {n} " * 40 for n in range(3)], Path(folder), 1)
        run(warm, f"{folder}/warm")
        base, cpu = peak_memory(), time.process_time()
        wall = time.perf_counter()
        gone = run(paths, f"{folder}/out")
        cpu = time.process_time() - cpu
        disk = sum(path.stat().st_size for path in Path(folder, "out").rglob("*") if path.is_file())
        wall = time.perf_counter() - wall
    queue.put((cpu, wall, base, peak_memory(), disk / 1e6, gone))


def alone(run, paths: list[str]) -> tuple:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measured, args=(run, paths, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="*", default=[20, 60], help="sizes to compare at")
    parser.add_argument("--documents", type=int, default=0, help="ours alone on so many documents of 10 KB")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRISTMILL_DATA", "../shared/data")))
    options = parser.parse_args()
    data = options.data if (options.data / "MANIFEST.md").is_file() else None
    runs = [(size, name, run) for size in options.megabytes for name, run in (("suffix array", suffix_array), ("ours", ours))]
    if options.documents:
        runs.append((options.documents * PAGE / 1e6, "ours", ours))
    rows = []
    for megabytes, name, run in runs:
        with tempfile.TemporaryDirectory() as folder:
            texts = pages(megabytes, data)
            paths, size = write(texts, Path(folder), max(2, int(megabytes / 50))), sum(map(len, texts)) / 1e6
            del texts
            cpu, wall, base, peak, disk, gone = alone(run, paths)
        rows.append((size, name, cpu, wall, peak - base, peak, disk, gone))
        print(f"    {name} {size:.0f} MB: {cpu:.1f} s", flush=True)
    print("| MB | method | CPU s | MB/s | wall s | memory above imports, MB | a MB of text | peak MB | disk, MB | bytes cut |")
    print("|---" * 10 + "|")
    for size, name, cpu, wall, above, peak, disk, gone in rows:
        print(f"| {size:.0f} | {name} | {cpu:.1f} | {size / cpu:.2f} | {wall:.1f} | {above:.0f} | {above / size:.1f} | {peak:.0f} | {disk:.0f} | {gone:,} |")


if __name__ == "__main__":
    main()
