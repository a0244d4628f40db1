"""Quality classifiers and their ensembles on human labels: does the ensemble beat each of its members?

    python benchmarks/quality_buckets.py [--data FOLDER] [--repeats 5] [--folds 5]

Labels: DCLM's, "keep this web page for pretraining or not". The two published files hold 780 rows but 499 documents (those all annotators agreed on
are in both), so every document counts once here: cross-validation over the rows would train on what it is tested on.

Each repeat splits the documents anew; every document is scored by classifiers that have not seen it, and ranked within its fold. Differences in AUC
are given with 95 % bootstrap intervals over documents (paired, percentile method), on the scores' ranks averaged over the repeats.
"""

import argparse
import gzip
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import norm

from filters.classifier import FastText, SignalModel, auc, example, mean_rank, reliability, train_fasttext
from filters.signals import measure

RESAMPLES = 2000


def labelled(data: Path) -> tuple[list[str], np.ndarray]:
    rows = {}
    for name in ("agreement", "majority"):
        with gzip.open(data / f"text/dclm-human-quality_{name}_data.jsonl.gz", "rt", encoding="utf-8") as file:
            rows |= {row["text"]: bool(row["label"]) for row in map(json.loads, file)}
    return list(rows), np.array(list(rows.values()))


def rank(scores: np.ndarray) -> np.ndarray:
    return mean_rank([scores])


def ensembles(members: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """members: ranks in (0, 1)."""
    columns = np.array(list(members.values()))
    twenty = np.floor(columns * 20)
    return {
        "mean of ranks (default)": columns.mean(0),
        "mean of normal scores": norm.ppf(columns).mean(0),
        "maximum of ranks": columns.max(0),
        "maximum of 20 buckets (Nemotron-CC)": twenty.max(0),
    }


def scored(texts: list[str], good: np.ndarray, signals: pa.StructArray, train: np.ndarray, test: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    (folder / "examples").write_text("".join(example(texts[row], bool(good[row])) for row in draw.permutation(train)), encoding="utf-8")
    train_fasttext(folder / "examples", folder / "model.bin", epochs=25, dimensions=16)
    shapes = SignalModel.train(signals.take(pa.array(train)), good[train])
    return {
        "fastText on words": FastText(folder / "model.bin").scores([texts[row] for row in test]),
        "linear on signals": shapes.scores(signals.take(pa.array(test))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRISTMILL_DATA") or Path(__file__).resolve().parents[2] / "shared/data"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folds", type=int, default=5)
    arguments = parser.parse_args()
    texts, good = labelled(arguments.data)
    signals = measure(texts, ["en"] * len(texts))
    print(f"{len(texts)} documents, {good.mean():.1%} of them good; {arguments.repeats} x {arguments.folds}-fold cross-validation")
    ranks: dict[str, list[np.ndarray]] = {}
    raw: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(arguments.repeats):
            fold = np.random.default_rng(repeat).permutation(len(texts)) % arguments.folds
            now: dict[str, np.ndarray] = {}
            for number in range(arguments.folds):
                test = np.flatnonzero(fold == number)
                members = scored(texts, good, signals, np.flatnonzero(fold != number), test, Path(name))
                for label, values in members.items():
                    raw.setdefault(label, np.zeros(len(texts)))[test] = values
                members = {label: rank(values) for label, values in members.items()}
                for label, values in {**members, **ensembles(members)}.items():
                    now.setdefault(label, np.zeros(len(texts)))[test] = values
            for label, values in now.items():
                ranks.setdefault(label, []).append(values)

    means = {label: np.mean(values, axis=0) for label, values in ranks.items()}
    members = list(means)[:2]
    best = max(members, key=lambda label: auc(means[label], good))
    draws = [np.random.default_rng(number).integers(0, len(texts), len(texts)) for number in range(RESAMPLES)]
    resampled = {label: np.array([auc(values[rows], good[rows]) for rows in draws]) for label, values in means.items()}
    print(f"\n| | AUC of a repeat, mean (least to most) | AUC of the repeats' mean | above {' | above '.join(members)} |\n|---|---|---|---|---|")
    for label, values in ranks.items():
        each = [auc(one, good) for one in values]
        above = []
        for member in members:
            low, high = np.percentile(resampled[label] - resampled[member], [2.5, 97.5])
            above.append("-" if member == label else f"{auc(means[label], good) - auc(means[member], good):+.4f} [{low:+.4f}, {high:+.4f}]")
        print(f"| {label} | {np.mean(each):.4f} ({min(each):.4f} to {max(each):.4f}) | {auc(means[label], good):.4f} | {' | '.join(above)} |")
    wins = np.mean([resampled["mean of ranks (default)"] > resampled[member] for member in members], axis=1)
    print(
        f"\nbest member: {best}; resamples in which the default beats {', '.join(f'{label}: {share:.1%}' for label, share in zip(members, wins, strict=True))}"
    )
    print("\nreliability of the members' probabilities (last repeat): mean score -> share good, by tenths of the documents")
    for label, values in raw.items():
        bins = [f"{entry['score']:.2f} -> {entry['good']:.2f}" for entry in reliability(values, good)]
        print(f"- {label}: {', '.join(bins)}")


if __name__ == "__main__":
    main()
