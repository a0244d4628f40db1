"""Near-duplicates found, against theory: real text, edited so that every pair's true Jaccard similarity is known.

    python benchmarks/dedup_accuracy.py [--pairs 5500] [--verify 0.8] [--presets fineweb ...] [--data FOLDER]

Passages of 220 words of textbooks and novels; the second of a pair has one or more runs of its words replaced by words of elsewhere, as many
as give a similarity in the bin asked for. The pair's similarity is then measured exactly, on the preset's own shingles. Printed per
preset and bin: pairs, mean similarity, the share that `dedup` put into one cluster, the share that 1 - (1 - s^r)^b predicts (averaged over the
pairs' own similarities), their difference in points and the share's standard error. Then, with and without verification: of all
pairs of documents that share a cluster, how many are truly as alike as the threshold says (precision), and how many of the pairs above
it were found (recall). Last, the labelled pairs of 1,000 news articles.
"""

import argparse
import gzip
import itertools
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from kernels.jaccard import jaccards, ngram_sets
from kernels.minhash import match_probability
from pipelines.dedup import PRESETS, DedupRecipe, dedup

BINS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
WORDS = 220


def words_of(data: Path) -> np.ndarray:
    words: list[str] = []
    for name in ("openstax-textbooks", "english-novels"):
        with gzip.open(data / f"text/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                words += json.loads(line)["text"].split()
    return np.array(words, object)


def edited(words: np.ndarray, replaced: int, words_elsewhere: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """`replaced` words changed, in one to three runs at random places."""
    result = words.copy()
    runs = min(int(draw.integers(1, 4)), max(replaced, 1))
    for run in range(runs):
        size = replaced // runs + (run < replaced % runs)
        start = int(draw.integers(0, words.size - size + 1))
        result[start : start + size] = draw.choice(words_elsewhere, size)
    return result


def pairs_of(words: np.ndarray, pairs: int) -> tuple[list[str], list[str]]:
    """Texts of `pairs` pairs around each bin: passage i and its edit."""
    draw = np.random.default_rng(2)
    total = pairs * len(BINS)
    starts = draw.permutation((words.size - WORDS) // WORDS)[:total] * WORDS
    assert starts.size == total, f"the text has only {words.size // WORDS} passages"
    left, right = [], []
    for place, start in enumerate(starts):
        target = BINS[place % len(BINS)] + draw.uniform(-0.02, 0.02)
        changed = WORDS * (1 - target) / (1 + target)  # J = (S - c) / (S + c)
        reach = 4  # each run also changes the shingles that reach into it
        replaced = max(1, round(changed - reach * (1 if changed < 3 * reach else 2)))
        passage = words[start : start + WORDS]
        left.append(" ".join(passage))
        right.append(" ".join(edited(passage, replaced, words, draw)))
    return left, right


def similarities(left: list[str], right: list[str], recipe) -> np.ndarray:
    sides = [ngram_sets(pa.array(side), recipe.n, recipe.normalisation) for side in (left, right)]
    rows, result = np.arange(len(left)), np.empty(len(left))
    jaccards(*sides[0], rows, *sides[1], rows, result)
    return result


def clusters_of(texts: list[str], recipe: DedupRecipe) -> np.ndarray:
    """The number of each text's cluster."""
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"id": [f"{row:07d}" for row in range(len(texts))], "text": texts}), f"{folder}/in.parquet")
        result = dedup([f"{folder}/in.parquet"], recipe, f"{folder}/out")
        frames = [result.scan(["id", "cluster_id"]).collect(), result.scan_rejected(["id", "cluster_id"]).collect()]
    return pl.concat(frames).sort("id")["cluster_id"].cast(pl.Int64).to_numpy()


def pairs_in_clusters(cluster: np.ndarray) -> np.ndarray:
    order = np.argsort(cluster, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1)
    return np.array([pair for group in groups if group.size > 1 for pair in itertools.combinations(group, 2)], np.int64).reshape(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5500, help="pairs a bin: 5,100 keep the standard error under 0.7 points")
    parser.add_argument("--verify", type=float, default=0.8)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRISTMILL_DATA") or Path(__file__).resolve().parents[2] / "shared/data"))
    arguments = parser.parse_args()
    words = words_of(arguments.data)
    left, right = pairs_of(words, arguments.pairs)
    bins = np.arange(len(left)) % len(BINS)
    texts = left + right
    precision = ["", "| preset | verify | pairs in clusters | of these truly alike | recall of pairs above |", "|---|---|---|---|---|"]
    print("| preset | similarity (mean) | pairs | found % | theory % | difference | standard error |\n|---|---|---|---|---|---|---|")
    worst = 0.0
    for preset in arguments.presets:
        for verify in (None, arguments.verify):
            recipe = DedupRecipe(exact={"url": False}, minhash={"preset": preset, "verify": verify})
            minhash = recipe.minhash
            cluster = clusters_of(texts, recipe)
            found = cluster[: len(left)] == cluster[len(left) :]
            true = similarities(left, right, minhash)
            if verify is None:
                theory = match_probability(true, minhash.bands, minhash.rows)
                for place in range(len(BINS)):
                    here = bins == place
                    share, expected = found[here].mean(), theory[here].mean()
                    error = np.sqrt((theory[here] * (1 - theory[here])).sum()) / here.sum()
                    worst = max(worst, abs(share - expected))
                    print(
                        f"| {preset} {minhash.bands}x{minhash.rows} | {true[here].mean():.3f} | {here.sum()} | {share:.1%} | {expected:.1%} "
                        f"| {100 * (share - expected):+.2f} | {100 * error:.2f} |",
                        flush=True,
                    )
            pairs = pairs_in_clusters(cluster)
            alike = similarities([texts[i] for i in pairs[:, 0]], [texts[i] for i in pairs[:, 1]], minhash) >= arguments.verify
            above = true >= arguments.verify
            precision.append(f"| {preset} | {verify} | {len(pairs)} | {alike.mean():.2%} | {found[above].mean():.2%} of {above.sum()} |")
    print("\n".join(precision))
    print(f"\nlargest difference between found and theory: {100 * worst:.2f} points\n")

    with gzip.open(arguments.data / "dedup/minhash-articles_1000.train.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split(" ", 1) for line in file]
    truth = {frozenset(line.split()) for line in (arguments.data / "dedup/minhash-articles_1000.truth").read_text().splitlines()}
    print("| preset | labelled pairs found | pairs invented |\n|---|---|---|")
    for preset in arguments.presets:
        cluster = clusters_of([text for _, text in rows], DedupRecipe(exact={"url": False}, minhash=preset))
        found = {frozenset((rows[i][0], rows[j][0])) for i, j in pairs_in_clusters(cluster)}
        print(f"| {preset} | {len(found & truth)} of {len(truth)} | {len(found - truth)} |")


if __name__ == "__main__":
    main()
