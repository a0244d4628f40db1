"""`gristmill train-classifier`: two sets of documents in, quality classifiers and how well they do on documents they have not seen out.

The result is a dataset folder without rows: `files/fasttext.bin`; `files/signals.json` where both sets carry signals; and
`files/calibration.json`, per classifier the held-out AUC and the share of good documents at each level of the score.

Which documents take part, which are held out and in what order fastText meets the others are functions of their ids alone. Texts are never
held: they are spread by hash over temporary files, each of which is sorted on its own, so fastText's input is mixed as a whole.
What is held grows with `limit`, not with the data: 8 bytes a document, and its signals (about 350 bytes).
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from filters.classifier import FastText, SignalModel, auc, example, mean_rank, reliability, train_fasttext
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe
from pipelines.stage import PartOutput, Stage, run_stage

VERSION = 2
SPREAD = 64  # temporary files of examples; one of them is sorted in memory at a time


class ClassifierRecipe(Recipe):
    """fastText's settings and the split."""

    dimensions: int = Field(64, ge=1, description="of fastText's word vectors")
    word_ngrams: int = Field(2, ge=1, description="longest run of words that is a feature")
    epochs: int = Field(5, ge=1, description="passes over the examples; a few thousand documents want 25")
    learning_rate: float = Field(0.3, gt=0, description="of fastText, at the start")
    buckets: int = Field(200_000, ge=0, description="hash buckets of word n-grams")
    ridge: float = Field(1.0, gt=0, description="L2 of the signal classifier")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the documents that is only measured")
    limit: int = Field(200_000, ge=1, description="documents a class, the first by hash of id")
    seed: int = Field(0, ge=0, description="of the choice of documents, their order and fastText")
    text: str = Field("text", description="the column that is read")


def train_classifier(good: Sequence[str], other: Sequence[str], recipe: ClassifierRecipe, out: str, progress: Progress = silent) -> Dataset:
    """Train on datasets of good and of ordinary documents; counters hold `auc_fasttext`, `auc_signals`, `auc_ensemble` and the sizes.

    Raises:
        UserError: a class is empty or has nothing to hold out, or an input is no finished dataset.
    """
    payload = {"good": list(good), "other": list(other)}
    stage = Stage(name="train-classifier", version=VERSION, plan=lambda inputs, config: [payload], run=train)
    return run_stage(stage, [*good, *other], recipe, out, progress=progress)


def train(payload: dict, recipe: ClassifierRecipe, output: PartOutput) -> None:
    classes = [(payload["good"], True), (payload["other"], False)]
    choices = [_choice(uris, good, recipe) for uris, good in classes]
    with_signals = all("signals" in batch.schema.names for uris, _ in classes for uri in uris for batch in _first(uri))

    def rows(held: bool) -> Iterator[tuple[bool, pa.RecordBatch]]:
        for (uris, good), choose in zip(classes, choices, strict=True):
            for batch in _batches(uris, recipe, ["id", recipe.text, *(["signals"] if with_signals else [])]):
                hashes = _hashes(batch["id"], recipe.seed)
                yield good, batch.append_column("hash", pa.array(hashes)).filter(pa.array(choose(hashes, held)))

    with tempfile.TemporaryDirectory() as folder:  # fastText reads and writes local files only
        examples, path = Path(folder) / "examples", Path(folder) / "fasttext.bin"
        labels, signals = [], []
        with ExitStack() as files:
            spread = [files.enter_context(open(Path(folder) / f"{number:02d}", "w", encoding="utf-8")) for number in range(SPREAD)]
            for good, batch in rows(held=False):
                labels.append(np.full(batch.num_rows, good))
                signals += [batch["signals"]] if with_signals else []
                for place, text in zip(batch["hash"].to_pylist(), batch[recipe.text].to_pylist(), strict=True):
                    if line := example(text, good):
                        spread[place * SPREAD >> 64].write(f"{place:016x}{line}")
        with open(examples, "w", encoding="utf-8") as target:
            for number in range(SPREAD):
                with open(Path(folder) / f"{number:02d}", encoding="utf-8") as source:
                    target.writelines(line[16:] for line in sorted(source))
        settings = {key: getattr(recipe, key) for key in ("dimensions", "word_ngrams", "epochs", "learning_rate", "buckets", "seed")}
        train_fasttext(examples, path, **settings)
        words = FastText(path)
        with output.file("fasttext.bin") as file:
            file.write(path.read_bytes())
    shapes = SignalModel.train(pa.chunked_array(signals).combine_chunks(), np.concatenate(labels), recipe.ridge) if with_signals else None
    truth, scores = [], {"fasttext": [], **({"signals": []} if shapes else {})}
    for good, batch in rows(held=True):
        truth.append(np.full(batch.num_rows, good))
        scores["fasttext"].append(words.scores(batch[recipe.text].to_pylist()))
        if shapes:
            scores["signals"].append(shapes.scores(batch["signals"]))
    if shapes:
        with output.file("signals.json") as file:
            file.write(shapes.dumps().encode())
    _measure(np.concatenate(truth), {name: np.concatenate(column) for name, column in scores.items()}, output)
    trained = np.concatenate(labels)
    output.count(good=int(trained.sum()), other=int((~trained).sum()))


def _measure(truth: np.ndarray, scores: dict[str, np.ndarray], output: PartOutput) -> None:
    """Count the held-out AUC of every classifier and of their ensemble, and write `calibration.json`."""
    if len(scores) > 1:
        scores = {**scores, "ensemble": mean_rank(list(scores.values()))}
    facts = {name: {"auc": auc(column, truth), "reliability": reliability(column, truth)} for name, column in scores.items()}
    output.count(held_out=truth.size, **{f"auc_{name}": entry["auc"] for name, entry in facts.items()})
    with output.file("calibration.json") as file:
        file.write(json.dumps({"documents": truth.size, "good": int(truth.sum()), "classifiers": facts}, indent=1).encode())


def _choice(uris: Sequence[str], good: bool, recipe: ClassifierRecipe) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Which documents of a class take part: a function of hashes and of whether those held out are meant."""
    border = np.uint64(int(recipe.held_out * 2**64))
    seen, count = [np.empty(0, np.uint64)], 0
    for batch in _batches(uris, recipe, ["id"]):
        seen.append(_hashes(batch["id"], recipe.seed))
        count += batch.num_rows
        if count > 2 * recipe.limit:
            seen = [np.partition(np.concatenate(seen), recipe.limit)[: recipe.limit]]
            count = recipe.limit
    smallest = np.sort(np.concatenate(seen))[: recipe.limit]
    last = smallest[-1] if smallest.size else np.uint64(0)

    def choose(hashes: np.ndarray, held: bool) -> np.ndarray:
        return (hashes <= last) & ((_again(hashes) < border) == held)

    sides = [int(choose(smallest, held).sum()) for held in (True, False)]
    if not all(sides):
        raise UserError(f"train-classifier: too few {'good' if good else 'other'} documents ({smallest.size}) to train on and to hold out")
    return choose


def _again(hashes: np.ndarray) -> np.ndarray:
    """A second hash of each, independent of the order of the first."""
    return np.array([xxhash.xxh3_64_intdigest(place.tobytes(), seed=1) for place in hashes.astype(">u8")], np.uint64)


def _hashes(ids: pa.Array, seed: int) -> np.ndarray:
    return np.array([xxhash.xxh3_64_intdigest(str(identity).encode(), seed=seed) for identity in ids.to_pylist()], np.uint64)


def _first(uri: str) -> Iterator[pa.RecordBatch]:
    yield next(Dataset.open(uri).batches(batch_size=1), pa.record_batch({"signals": pa.array([])}))


def _batches(uris: Sequence[str], recipe: ClassifierRecipe, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for uri in uris:
        names = next(_first(uri)).schema.names
        if recipe.text not in names or "id" not in names:
            if Dataset.open(uri).rows:
                raise UserError(f"{uri}: a classifier needs the columns id and {recipe.text}")
            continue
        yield from Dataset.open(uri).batches(columns)
