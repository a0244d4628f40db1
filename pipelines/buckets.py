"""Twenty quality buckets from an ensemble of classifiers, as in Nemotron-CC (Su et al. 2024).

Each classifier ranks the corpus by its own score; ranks are cut every 5 % of *text* (UTF-8 bytes), not of documents; a document's bucket is
the best that any classifier gives it, because they recognise different kinds of good text. Scores of different models never meet,
only ranks do.

    scores   each part: every classifier's score, and how many bytes fall on each of 2^16 score bins
    cuts     the bins of all parts summed: which bin begins which bucket, per classifier
    <out>    each part again: `quality_bucket`, `quality_level`, `quality_scores`

Bins are uniform in the logit, where saturated probabilities still differ; they add up over parts, so no step sorts the corpus.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from filters.classifier import GOOD, FastText, SignalModel
from pipelines.cluster import Cluster
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe
from pipelines.stage import PartOutput, Stage, run_stage

VERSION = 1
BINS = 1 << 16
LOGIT_RANGE = 16.0  # float32 probabilities do not resolve anything beyond
BATCH_ROWS = 1024


class ClassifierSpec(Recipe):
    """A member of the ensemble."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    path: str = Field(description="a fastText model (any two-label one), or a signal classifier (.json)")
    kind: Literal["fasttext", "signals"] = "fasttext"
    label: str = GOOD


class BucketRecipe(Recipe):
    """The ensemble and the names of its buckets."""

    classifiers: tuple[ClassifierSpec, ...] = Field(min_length=1)
    buckets: int = Field(20, ge=2, le=100)
    # First bucket of each level. Nemotron-CC publishes five levels and uses 18-19 as the high one; where the others begin is our choice.
    levels: dict[str, int] = {"low": 0, "medium_low": 7, "medium": 12, "medium_high": 16, "high": 18}
    text: str = "text"

    @field_validator("classifiers")
    @classmethod
    def _distinct(cls, members: tuple[ClassifierSpec, ...]) -> tuple[ClassifierSpec, ...]:
        names = [member.name for member in members]
        if len(set(names)) < len(names):
            raise ValueError(f"two classifiers have the same name among {', '.join(names)}")
        return members

    @field_validator("levels")
    @classmethod
    def _complete(cls, levels: dict[str, int]) -> dict[str, int]:
        if 0 not in levels.values():
            raise ValueError("some level must begin at bucket 0")
        return dict(sorted(levels.items(), key=lambda level: level[1]))


def bucket(
    inputs: Sequence[str | Dataset],
    recipe: BucketRecipe,
    out: str,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    name: str | None = None,
) -> Dataset:
    """Add `quality_bucket` (int8, 0 worst), `quality_level` and `quality_scores` to every row; none is rejected.

    Raises:
        UserError: a classifier cannot be read or does not fit, or an input is no finished dataset.
    """
    uris = [entry.uri if isinstance(entry, Dataset) else str(entry) for entry in inputs]
    parts = [part for uri in uris for part in ([uri] if uri.endswith(".parquet") else Dataset.open(uri).parts)]
    paths = [member.path for member in recipe.classifiers]
    # A path is no part of what a run is: the models are inputs, known by name and size.
    nameless = recipe.model_copy(update={"classifiers": tuple(member.model_copy(update={"path": member.name}) for member in recipe.classifiers)})

    def step(label: str, run: Any, payloads: list[dict], sources: Sequence[str]) -> Dataset:
        stage = Stage(name=f"bucket.{label}", version=VERSION, plan=lambda inputs, config: payloads, run=run)
        return run_stage(stage, sources, nameless, f"{out}/work/{label}", cluster=cluster, progress=progress)

    sources = [*uris, *paths]
    if Dataset.exists(out):
        return run_stage(Stage(name="bucket", version=VERSION, plan=lambda inputs, config: [], run=write_buckets), sources, nameless, out)
    scored = step("scores", write_scores, [{"index": index, "part": part, "models": paths} for index, part in enumerate(parts)], sources)
    files = {kind: [uri for uri in scored.files if uri.rpartition("/")[2].startswith(kind)] for kind in ("scores-", "bins-")}
    cuts = step("cuts", write_cuts, [{"bins": files["bins-"]}], [scored.uri])
    payloads = [{"part": part, "scores": scores, "cuts": cuts.files[0]} for part, scores in zip(parts, files["scores-"], strict=True)]
    stage = Stage(name="bucket", version=VERSION, plan=lambda inputs, config: payloads, run=write_buckets)
    return run_stage(stage, sources, nameless, out, cluster=cluster, progress=progress, name=name)


def write_scores(payload: dict, recipe: BucketRecipe, output: PartOutput) -> None:
    """`scores-N.arrow` (a float32 column a classifier, row by row) and `bins-N.arrow` (bytes of text per score bin)."""
    models = [_load(member.kind, path, member.label) for member, path in zip(recipe.classifiers, payload["models"], strict=True)]
    needed = [recipe.text, *({"signals"} if any(member.kind == "signals" for member in recipe.classifiers) else ())]
    columns: list[list[np.ndarray]] = [[] for _ in models]
    sizes = []
    with fsspec.open(payload["part"], "rb") as file, pq.ParquetFile(file) as parquet:
        if missing := [name for name in needed if name not in parquet.schema_arrow.names]:
            raise UserError(f"{payload['part']}: no column {missing[0]!r}, which a classifier reads")
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=needed):
            texts = batch[recipe.text]
            sizes.append(pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False).astype(np.float64))
            for member, model, column in zip(recipe.classifiers, models, columns, strict=True):
                try:
                    column.append(model.scores(batch["signals"] if member.kind == "signals" else texts.to_pylist()))
                except ValueError as error:
                    raise UserError(f"classifier {member.name}: {error}") from None
    scores = [np.concatenate(column) for column in columns]
    size = np.concatenate(sizes)
    bins = [np.bincount(bin_of(column), size, BINS) for column in scores]
    names = [member.name for member in recipe.classifiers]
    for leaf, arrays in (("scores", scores), ("bins", bins)):
        table = pa.table(arrays, names=names)
        with output.file(f"{leaf}-{payload['index']:05d}.arrow") as target, pa.ipc.new_file(pa.PythonFile(target, mode="w"), table.schema) as writer:
            writer.write_table(table)


def write_cuts(payload: dict, recipe: BucketRecipe, output: PartOutput) -> None:
    """`cuts.json`: for each classifier the first score bin of buckets 1, 2, ..."""
    totals = {member.name: np.zeros(BINS) for member in recipe.classifiers}
    for uri in payload["bins"]:
        table = _read_arrow(uri)
        for name, total in totals.items():
            total += table[name].to_numpy()
    with output.file("cuts.json") as file:
        file.write(json.dumps({name: cuts_of(total, recipe.buckets).tolist() for name, total in totals.items()}).encode())


def write_buckets(payload: dict, recipe: BucketRecipe, output: PartOutput) -> None:
    """The part's rows with their buckets."""
    table = _read_arrow(payload["scores"])
    with fsspec.open(payload["cuts"], "rb") as file:
        cuts = json.load(file)
    scores = {member.name: table[member.name].to_numpy() for member in recipe.classifiers}
    best = np.max([np.searchsorted(cuts[name], bin_of(column), side="right") for name, column in scores.items()], axis=0).astype(np.int8)
    names = pa.array(list(recipe.levels), pa.string())
    level = names.take(pa.array(np.searchsorted(list(recipe.levels.values()), best, side="right") - 1))
    struct = pa.StructArray.from_arrays([pa.array(column) for column in scores.values()], names=list(scores))
    added = {"quality_bucket": pa.array(best), "quality_level": level, "quality_scores": struct}
    begin = 0
    with fsspec.open(payload["part"], "rb") as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
            rows = pa.Table.from_batches([batch])
            rows = rows.drop_columns([name for name in added if name in rows.column_names])
            for name, values in added.items():
                rows = rows.append_column(name, values.slice(begin, batch.num_rows))
            output.read(batch.num_rows)
            output.write(rows)
            begin += batch.num_rows
    for name, count in zip(*np.unique(level.to_numpy(zero_copy_only=False), return_counts=True), strict=True):
        output.count(**{f"levels.{name}": int(count)})


def bin_of(scores: np.ndarray) -> np.ndarray:
    """The bin int64 [D] of probabilities: uniform in the logit, clipped at +-LOGIT_RANGE."""
    p = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    logit = np.clip(np.log(p / (1 - p)), -LOGIT_RANGE, LOGIT_RANGE)
    return np.minimum(((logit + LOGIT_RANGE) * (BINS / (2 * LOGIT_RANGE))).astype(np.int64), BINS - 1)


def cuts_of(weights: np.ndarray, buckets: int) -> np.ndarray:
    """First bin int64 [buckets - 1] of buckets 1, 2, ... so that each holds an equal share of `weights` [BINS], as far as bins allow.

    A bin belongs to the bucket in which its middle lies: equal scores share a bucket, and a constant classifier puts all in the middle one.
    """
    total = weights.sum()
    if total == 0:
        return np.full(buckets - 1, BINS)
    middle = (np.cumsum(weights) - weights / 2) / total
    return np.searchsorted(middle, np.arange(1, buckets) / buckets, side="left")


@functools.lru_cache(maxsize=8)  # once a process, not once a part
def _load(kind: str, path: str, label: str) -> FastText | SignalModel:
    try:
        if kind == "fasttext":
            return FastText(path, label)
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            return SignalModel.loads(file.read())
    except ValueError as error:
        raise UserError(str(error)) from None


def _read_arrow(uri: str) -> pa.Table:
    with fsspec.open(uri, "rb") as file:
        return pa.ipc.open_file(pa.PythonFile(file, mode="r")).read_all()
