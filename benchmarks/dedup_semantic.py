"""Semantic dedup: documents a second on one core, and which labelled pairs it finds at which epsilon, beside MinHash on the same texts.

    python benchmarks/dedup_semantic.py [--data FOLDER] [--pairs 202]

Two labelled sets: 1,000 news articles with 10 near-duplicate pairs, and old and new revisions of textbook pages. Pairs are judged by the cosine of the
vectors that the pipeline stores (float16), over all pairs of documents, so clustering plays no part; precision counts every other pair as wrong,
even where two pages of one book do say the same. MinHash is the pipeline with FineWeb's parameters, its clusters taken apart into pairs.
The last table runs the whole pipeline: what clustering costs in pairs and saves in comparisons.
"""

import argparse
import gzip
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dedup import DedupRecipe, dedup
from pipelines.dedup.semantic import SemanticRecipe, dedup_semantic
from pipelines.dedup.semantic.embedders import load_embedder, unit_rows

EPSILONS = (0.01, 0.02, 0.05, 0.1, 0.2)
Labelled = tuple[list[str], list[str], set[frozenset[str]]]  # ids, texts, pairs


def articles(data: Path) -> Labelled:
    with gzip.open(data / "dedup/minhash-articles_1000.train.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split(" ", 1) for line in file]
    truth = {frozenset(line.split()) for line in (data / "dedup/minhash-articles_1000.truth").read_text().splitlines()}
    return [row[0] for row in rows], [row[1] for row in rows], truth


def revisions(data: Path, count: int) -> Labelled:
    with gzip.open(data / "dedup/openstax-revision-pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file][:count]
    ids = [f"{pair['id']}|{side}" for pair in pairs for side in ("old", "new")]
    return ids, [pair[side] for pair in pairs for side in ("old", "new")], {frozenset((ids[at], ids[at + 1])) for at in range(0, len(ids), 2)}


def curve(vectors: np.ndarray, ids: list[str], truth: set[frozenset[str]]) -> list[str]:
    cosine = np.triu(vectors @ vectors.T, 1)
    cells = []
    for epsilon in EPSILONS:
        found = {frozenset((ids[a], ids[b])) for a, b in np.argwhere(cosine >= 1 - epsilon)}
        cells.append(rates(found, truth))
    return cells


def rates(found: set[frozenset[str]], truth: set[frozenset[str]]) -> str:
    right = len(found & truth)
    return f"{right / len(truth):.3f} / {right / len(found):.3f}" if found else "0 / -"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=202, help="textbook pairs to use")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRISTMILL_DATA", "../shared/data")))
    options = parser.parse_args()
    sets = {"articles": articles(options.data), "revisions": revisions(options.data, options.pairs)}
    recipes = {"hashing": SemanticRecipe(embedder="hashing")} | {f"minilm, windows={n}": SemanticRecipe(windows=n) for n in (1, 4)}
    recipes["minilm, bfloat16"] = SemanticRecipe(precision="bfloat16")
    lines, stored = [], {}
    for (name, (ids, texts, truth)), (label, recipe) in itertools.product(sets.items(), recipes.items()):
        embed, _ = load_embedder(recipe)
        embed(texts[:4])
        begun = time.process_time()
        vectors = embed(texts)
        seconds = time.process_time() - begun
        stored[name, label] = unit_rows(vectors.astype(np.float16).astype(np.float32))
        speed = f"{len(texts) / seconds:.1f} | {sum(map(len, texts)) / seconds / 1e6:.2f}"
        lines.append(f"| {name} | {label} | {speed} | {' | '.join(curve(stored[name, label], ids, truth))} |")
        print(lines[-1], flush=True)
    print("\n| set | embedder | documents/s | MB/s | " + " | ".join(f"recall / precision at {epsilon}" for epsilon in EPSILONS) + " |")
    print("|---" * (4 + len(EPSILONS)) + "|")
    print("\n".join(lines))
    print("\n| set | method | documents that left | recall / precision of pairs |\n|---|---|---|---|")
    for name, (ids, texts, truth) in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/in.parquet"
            pq.write_table(pa.table({"id": ids, "text": texts}), path)
            result = dedup([path], DedupRecipe(exact={"url": False}), f"{folder}/minhash")
            frame = result.scan_rejected(["id", "cluster_id"]).collect().vstack(result.scan(["id", "cluster_id"]).collect())
            groups = frame.group_by("cluster_id").agg("id")["id"].to_list()
            found = {frozenset(pair) for group in groups for pair in itertools.combinations(group, 2)}
            print(f"| {name} | MinHash 14 x 8 | {result.rejected_rows} | {rates(found, truth)} |")
            for clusters in (1, 10, 100):
                recipe = SemanticRecipe(embedder="hashing", epsilon=0.05, clusters=clusters)
                result = dedup_semantic([path], recipe, f"{folder}/semantic-{clusters}")
                found = {frozenset(pair) for pair in result.scan_rejected(["id", "duplicate_of"]).collect().iter_rows()}
                print(f"| {name} | hashing, epsilon 0.05, {clusters} clusters | {result.rejected_rows} | {rates(found, truth)} |", flush=True)


if __name__ == "__main__":
    main()
