"""`gristmill train-classifier`: two sets of documents in, quality classifiers and their held-out AUC out.

The result is a dataset folder without rows: `files/fasttext.bin`, and `files/signals.json` where both sets carry signals. A tenth of the documents,
chosen by their ids, is kept from training and measured.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from filters.classifier import FastText, SignalModel, auc, train_fasttext
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe
from pipelines.stage import PartOutput, Stage, run_stage

VERSION = 1


class ClassifierRecipe(Recipe):
    """fastText's settings and the split."""

    dimensions: int = Field(64, ge=1)
    word_ngrams: int = Field(2, ge=1)
    epochs: int = Field(5, ge=1)
    learning_rate: float = Field(0.3, gt=0)
    buckets: int = Field(200_000, ge=0, description="hash buckets of word n-grams")
    ridge: float = Field(1.0, gt=0, description="L2 of the signal classifier")
    held_out: float = Field(0.1, gt=0, lt=1)
    limit: int = Field(200_000, ge=1, description="documents a class, the first by hash of id")
    seed: int = 0
    text: str = "text"


def train_classifier(good: Sequence[str], other: Sequence[str], recipe: ClassifierRecipe, out: str, progress: Progress = silent) -> Dataset:
    """Train on datasets of good and of ordinary documents; counters hold `auc_fasttext`, `auc_signals` and the sizes.

    Raises:
        UserError: a class is empty or has nothing to hold out, or an input is no finished dataset.
    """
    payload = {"good": list(good), "other": list(other)}
    stage = Stage(name="train-classifier", version=VERSION, plan=lambda inputs, config: [payload], run=train)
    return run_stage(stage, [*good, *other], recipe, out, progress=progress)


def train(payload: dict, recipe: ClassifierRecipe, output: PartOutput) -> None:
    texts: dict[bool, dict[bool, list[str]]] = {True: {}, False: {}}  # held out -> good -> texts
    signals: dict[bool, dict[bool, list]] = {True: {}, False: {}}
    for is_good, uris in ((True, payload["good"]), (False, payload["other"])):
        rows = sorted(_rows(uris, recipe), key=lambda row: row[0])[: recipe.limit]
        border = recipe.held_out * 2**64
        for held in (True, False):
            chosen = [row for row in rows if (xxhash.xxh3_64_intdigest(row[0].to_bytes(8, "big"), seed=1) < border) is held]
            texts[held][is_good] = [row[1] for row in chosen]
            signals[held][is_good] = [row[2] for row in chosen]
            if not chosen:
                raise UserError(f"train-classifier: too few {'good' if is_good else 'other'} documents ({len(rows)}) to train on and to hold out")
    truth = np.repeat([True, False], [len(texts[True][True]), len(texts[True][False])])
    output.count(good=len(texts[False][True]), other=len(texts[False][False]), held_out=truth.size)

    with tempfile.TemporaryDirectory() as folder:  # fastText reads and writes local files only
        path = Path(folder) / "fasttext.bin"
        settings = {key: getattr(recipe, key) for key in ("dimensions", "word_ngrams", "epochs", "learning_rate", "buckets", "seed")}
        train_fasttext(texts[False][True], texts[False][False], path, **settings)
        output.count(auc_fasttext=auc(FastText(path).scores(texts[True][True] + texts[True][False]), truth))
        with output.file("fasttext.bin") as file:
            file.write(path.read_bytes())
    both = {held: signals[held][True] + signals[held][False] for held in (True, False)}
    if all(row is not None for row in both[True] + both[False]):
        labels = np.repeat([True, False], [len(signals[False][True]), len(signals[False][False])])
        table = pa.array(both[False] + both[True])
        model = SignalModel.train(table[: labels.size], labels, recipe.ridge)
        output.count(auc_signals=auc(model.scores(table[labels.size :]), truth))
        with output.file("signals.json") as file:
            file.write(model.dumps().encode())


def _rows(uris: Sequence[str], recipe: ClassifierRecipe) -> Iterator[tuple[int, str, dict | None]]:
    """(hash of id and seed, text, signals)."""
    for uri in uris:
        dataset = Dataset.open(uri)
        for batch in dataset.batches():
            names = batch.schema.names
            if recipe.text not in names or "id" not in names:
                raise UserError(f"{uri}: a classifier needs the columns id and {recipe.text}")
            signals = batch["signals"].to_pylist() if "signals" in names else [None] * batch.num_rows
            for identity, text, values in zip(batch["id"].to_pylist(), batch[recipe.text].to_pylist(), signals, strict=True):
                yield xxhash.xxh3_64_intdigest(str(identity).encode(), seed=recipe.seed), text or "", values
