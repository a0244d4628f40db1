"""MinHash signatures: documents a second on one core against datasketch (and rensa, datatrove where installed), same documents, same run.

    python benchmarks/dedup_speed.py [--documents 2000] [--data FOLDER]

Everyone gets the same texts and FineWeb's parameters (5-word shingles, 112 permutations, 14 x 8). Times are CPU seconds of this process, from
text to signature: shingling included. Then the decisions are compared: which planted near-copies each method puts together.
Peers shingle with a regex (lower-cased words), ours with its own table, so decisions may differ where the words do; the last line
compares with datasketch on our own shingle hashes, where they must not.
"""

import argparse
import gzip
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import networkx
import numpy as np
import pyarrow as pa
import xxhash
from datasketch import MinHash

from kernels import minhash
from kernels.ngrams import ngrams_of

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


def ours(texts: list[str]) -> np.ndarray:
    return minhash.signatures(pa.array(texts, pa.large_string()), n=N, count=BANDS * ROWS)[0]


def shingles(text: str) -> Iterator[bytes]:
    words = WORD.findall(text.lower())
    return (" ".join(words[i : i + N]).encode() for i in range(max(1, len(words) - N + 1)))


def with_datasketch(hash_function: Callable | None) -> Callable[[list[str]], np.ndarray]:
    def run(texts: list[str]) -> np.ndarray:
        options = {"hashfunc": hash_function, "scheme": "affine64"} if hash_function else {"scheme": "affine64"}
        first = MinHash(num_perm=BANDS * ROWS, **options)
        rows = []
        for text in texts:
            sketch = MinHash(num_perm=BANDS * ROWS, permutations=first.permutations, **options)
            sketch.update_batch(list(shingles(text)))
            rows.append(sketch.hashvalues)
        return np.array(rows, np.uint64)

    return run


def with_rensa(texts: list[str]) -> np.ndarray:
    from rensa import RMinHash

    rows = []
    for text in texts:
        sketch = RMinHash(num_perm=BANDS * ROWS, seed=1)
        sketch.update([shingle.decode() for shingle in shingles(text)])
        rows.append(sketch.digest())
    return np.array(rows, np.uint64)


def with_datatrove(texts: list[str]) -> np.ndarray:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(n_grams=N, num_buckets=BANDS, hashes_per_bucket=ROWS, hash_config=HashConfig(precision=64))
    step = MinhashDedupSignature("/dev/null", config)
    return np.array([np.concatenate(step.get_signature(step.get_shingles(Document(text=text, id="")))) for text in texts], np.uint64)


def clusters(signatures: np.ndarray) -> set[frozenset[int]]:
    graph = networkx.Graph()
    for band in range(BANDS):
        groups: dict[bytes, int] = {}
        for row, key in enumerate(signatures[:, band * ROWS : (band + 1) * ROWS]):
            graph.add_edge(groups.setdefault(key.tobytes(), row), row)
    return {frozenset(ids) for ids in networkx.connected_components(graph) if len(ids) > 1}


def pairs(found: set[frozenset[int]]) -> set[tuple[int, int]]:
    return {pair for ids in found for pair in itertools.combinations(sorted(ids), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--slow-documents", type=int, default=60, help="for peers below 100 documents a second")
    default = Path(os.environ.get("GRISTMILL_DATA") or Path(__file__).resolve().parents[2] / "shared/data")
    parser.add_argument("--data", type=Path, default=default if default.is_dir() else None, help="real texts; generated ones without it")
    arguments = parser.parse_args()
    texts = documents(arguments.documents, arguments.data)
    size = sum(len(text.encode()) for text in texts)
    print(f"{len(texts)} documents, {size / len(texts) / 1000:.1f} KB on average, {'real' if arguments.data else 'generated'} text")
    print(f"{'':38s} {'docs/s/core':>12s} {'MB/s/core':>10s} {'ours is':>9s}")

    ours(texts[:2])  # compile
    methods = {
        "ours": (ours, len(texts)),
        "datasketch, sha1": (with_datasketch(None), len(texts)),
        "datasketch, xxh3": (with_datasketch(xxhash.xxh3_64_intdigest), len(texts)),
        "rensa": (with_rensa, len(texts)),
        "datatrove": (with_datatrove, min(len(texts), arguments.slow_documents)),
    }
    results, base = {}, 0.0
    for name, (method, count) in methods.items():
        try:
            method(texts[:1])
        except ImportError as error:
            print(f"{name:38s} not installed ({error})")
            continue
        begin = time.process_time()
        results[name] = method(texts[:count])
        speed = count / (time.process_time() - begin)
        base = base or speed
        print(f"{name:38s} {speed:12,.0f} {speed * size / len(texts) / 1e6:10.1f} {base / speed:8.1f}x")

    mine = pairs(clusters(results["ours"]))
    planted = {(place - 5, place) for place in range(9, len(texts), 10)}
    print(f"\nplanted near-copies found: ours {len(planted & mine)}/{len(planted)}, pairs beyond them {len(mine - planted)}")
    for name, signatures in results.items():
        if name != "ours" and len(signatures) == len(texts):
            theirs = pairs(clusters(signatures))
            print(f"pairs found by ours and {name}: {len(mine & theirs)} of {len(mine | theirs)} found by either")

    sketches = []
    for text in texts[:500]:
        sketch = MinHash(num_perm=BANDS * ROWS, scheme="affine64", hashfunc=lambda gram: gram)
        sketch.update_batch(ngrams_of(text, N).tolist())
        sketches.append(sketch.hashvalues)
    affine, _ = minhash.signatures(pa.array(texts[:500]), n=N, count=BANDS * ROWS, family="affine64")
    equal = np.array_equal(affine, np.array(sketches, np.uint64))
    print(f"signatures on our shingle hashes, 500 documents, ours (affine64) and datasketch: {'equal' if equal else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
