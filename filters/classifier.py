"""Quality as a probability: fastText over words, and a linear model over signals.

fastText in the form that DCLM, Nemotron-CC and FineWeb-HQ use it: "is this text from the good set or from the ordinary one?". Any
two-label fastText file works (`FastText(path, label=...)`), ours are trained by `train_fasttext`. The linear model reads what `filters.signals`
already measured, so its scores are nearly free, and it errs elsewhere than words do, which is what an ensemble is for.

Training is a function of its inputs and seed alone: fastText runs on one thread (its threads race), the linear model has one optimum.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import fasttext
import numpy as np
import pyarrow as pa

GOOD, OTHER = "__label__good", "__label__other"
_SPACE = re.compile(r"\s+")


def as_line(text: str, limit: int = 20_000) -> str:
    """What fastText reads of a text: one line, at most `limit` characters, no token that could pass for a label."""
    return _SPACE.sub(" ", text[:limit].replace("__label__", "label")).strip()


class FastText:
    """A two-label fastText model as a probability of its good label."""

    def __init__(self, path: str | Path, label: str = GOOD):
        if not Path(path).is_file():
            raise ValueError(f"no fastText model at {path}")
        try:
            self._model = fasttext.load_model(str(path))
        except ValueError as error:
            raise ValueError(f"{path} is no fastText model: {error}") from None
        if label not in self._model.labels:
            raise ValueError(f"{path} has no label {label} (it has {', '.join(self._model.labels[:5])})")
        self._label = label

    def scores(self, texts: Sequence[str | None]) -> np.ndarray:
        """Probability float32 [D] of the good label; 0 for a text without words."""
        scores = np.zeros(len(texts), np.float32)
        for row, text in enumerate(texts):
            line = as_line(text or "")
            if line:
                found = {label: score for score, label in self._model.f.predict(line + "\n", -1, 0.0, "strict")}
                scores[row] = min(found.get(self._label, 0.0), 1.0)
        return scores


def example(text: str | None, good: bool) -> str:
    """A line of fastText's training file, or "" for a text without words."""
    line = as_line(text or "")
    return f"{GOOD if good else OTHER} {line}\n" if line else ""


def train_fasttext(
    examples: str | Path,
    path: str | Path,
    *,
    dimensions: int = 64,
    word_ngrams: int = 2,
    epochs: int = 5,
    learning_rate: float = 0.3,
    buckets: int = 200_000,
    seed: int = 0,
) -> None:
    """Train on a local file of `example` lines, well mixed (fastText reads it in order, and never holds it), and write the model to a local path."""
    model = fasttext.train_supervised(
        input=str(examples),
        dim=dimensions,
        wordNgrams=word_ngrams,
        epoch=epochs,
        lr=learning_rate,
        bucket=buckets,
        minCount=2,
        thread=1,
        verbose=0,
        seed=seed,
    )
    temporary = f"{path}.tmp"
    model.save_model(temporary)
    os.replace(temporary, path)


class SignalModel:
    """Logistic regression over the numeric fields of the `signals` struct; heavy-tailed values enter as asinh."""

    def __init__(self, features: Sequence[str], mean: np.ndarray, scale: np.ndarray, weights: np.ndarray):
        self.features, self.mean, self.scale, self.weights = list(features), mean, scale, weights  # weights: [F + 1], the last is the bias

    @classmethod
    def train(cls, signals: pa.StructArray, good: np.ndarray, ridge: float = 1.0) -> "SignalModel":
        """Fit by Newton's method. signals: one row a document; good: bool [D]; ridge: L2 strength on standardised weights.

        Raises ValueError when a class is empty or there are no numeric signals.
        """
        if good.all() or not good.any():
            raise ValueError("a classifier needs documents of both classes")
        kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
        numeric = [field.name for field in signals.type if any(kind(field.type) for kind in kinds)]
        if not numeric:
            raise ValueError("the signals have no numeric field")
        raw = _matrix(signals, numeric)
        mean, scale = raw.mean(0), raw.std(0)
        features = [name for name, spread in zip(numeric, scale, strict=True) if spread > 0]
        kept = scale > 0
        mean, scale = mean[kept], scale[kept]
        x = np.column_stack(((raw[:, kept] - mean) / scale, np.ones(len(raw))))
        y = good.astype(np.float64)
        weights = np.zeros(x.shape[1])
        penalty = np.append(np.full(x.shape[1] - 1, ridge), 1e-9)  # the bias is free
        for _ in range(50):
            p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
            gradient = x.T @ (p - y) + penalty * weights
            curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-9)
            step = np.linalg.solve(curvature, gradient)
            weights = weights - step * min(1.0, 5.0 / max(np.abs(step).max(), 1e-12))  # damped where the classes separate
            if np.abs(step).max() < 1e-8:
                break
        return cls(features, mean, scale, weights)

    def scores(self, signals: pa.StructArray) -> np.ndarray:
        """Probability float32 [D]. Raises ValueError when a feature is missing."""
        known = {field.name for field in signals.type}
        if missing := [name for name in self.features if name not in known]:
            raise ValueError(f"the documents lack the signal {missing[0]} of the classifier")
        x = (_matrix(signals, self.features) - self.mean) / self.scale
        return (1 / (1 + np.exp(-np.clip(x @ self.weights[:-1] + self.weights[-1], -30, 30)))).astype(np.float32)

    def dumps(self) -> str:
        values = {"mean": self.mean.tolist(), "scale": self.scale.tolist(), "weights": self.weights.tolist()}
        return json.dumps({"kind": "signals", "features": self.features, **values}, indent=1)

    @classmethod
    def loads(cls, text: str) -> "SignalModel":
        """Raises ValueError when the text is no saved model."""
        try:
            values = json.loads(text)
            return cls(values["features"], *(np.array(values[key], np.float64) for key in ("mean", "scale", "weights")))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a signal classifier: {error!r}") from None


def auc(scores: np.ndarray, good: np.ndarray) -> float:
    """Area under the ROC curve: P(a good document scores above another), ties half (Mann-Whitney). NaN if a class is empty."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives, negatives = int(good.sum()), int((~good).sum())
    return float((ranks[good].sum() - positives * (positives + 1) / 2) / (positives * negatives)) if positives and negatives else float("nan")


def mean_rank(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The ensemble: the mean over classifiers of each document's rank among all, ties sharing theirs; float64 [D] in (0, 1)."""
    ranks = []
    for column in scores:
        _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
        ranks.append(((np.cumsum(counts) - counts / 2) / column.size)[place])
    return np.mean(ranks, axis=0)


def reliability(scores: np.ndarray, good: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """How often a score is right: equally filled bins of documents in the order of their scores, each with `score` (mean), `good` (share) and `documents`."""
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, min(bins, order.size))
    return [{"score": float(scores[part].mean()), "good": float(good[part].mean()), "documents": int(part.size)} for part in parts if part.size]


def _matrix(signals: pa.StructArray, names: Sequence[str]) -> np.ndarray:
    """float64 [D, F]; absent values count as 0."""
    columns = [signals.field(name).cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False) for name in names]
    return np.arcsinh(np.nan_to_num(np.column_stack(columns)))
