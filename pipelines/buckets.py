"""Twenty quality buckets from an ensemble of classifiers.

Each classifier ranks the corpus by its own score: a document's rank is the share of *text* (UTF-8 bytes, not documents) that scores below it. Scores of
different models never meet, only ranks do. They are combined in one of two ways:

    mean   the mean of the ranks, ranked again: buckets hold equal shares of text. Beats every member on human labels (benchmarks/quality_buckets.py)
    max    the best bucket any classifier gives, as Nemotron-CC publishes (Su et al. 2024): classifiers recognise different kinds of good text.
           On the same labels this ranks below the mean; upper buckets hold more than their share

    scores   each part: every classifier's score, and how many bytes fall on each of 2^16 score bins
    ranks    the bins of all parts summed: the rank of every bin, per classifier
    means    (mean only) each part: how many bytes fall on each of 2^16 bins of the mean rank; then `cuts`, their ranks
    <out>    each part again: `quality_bucket`, `quality_level`, `quality_rank`, `quality_scores`

Bins are uniform in the logit, where saturated probabilities still differ; byte counts add up exactly in any order, so no step sorts the corpus and
no process holds more than a part's scores. A rank is off by at most half the share of the fullest bin, counted as `rank_error.<classifier>`.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from filters.classifier import GOOD, FastText, SignalModel
from pipelines.arrow_files import read_arrow, write_arrow
from pipelines.cluster import Cluster
from pipelines.dataset import Dataset, open_part
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe
from pipelines.stage import PartOutput, Stage, run_stage

VERSION = 2
BINS = 1 << 16
LOGIT_RANGE = 16.0  # float32 probabilities do not resolve anything beyond
BATCH_ROWS = 1024


class ClassifierSpec(Recipe):
    """A member of the ensemble."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$", description="of its column in `quality_scores`")
    path: str = Field(description="a fastText model (any two-label one), or a signal classifier (.json)")
    kind: Literal["fasttext", "signals"] = Field("fasttext", description="what the file holds")
    label: str = Field(GOOD, description="fastText's label of good text, e.g. __label__hq")


class BucketRecipe(Recipe):
    """The ensemble and the names of its buckets."""

    classifiers: tuple[ClassifierSpec, ...] = Field(min_length=1, description="the members: name, path, kind, label")
    combine: Literal["mean", "max"] = Field("mean", description="mean of the classifiers' ranks, or the best bucket any gives (Nemotron-CC)")
    buckets: int = Field(20, ge=2, le=100, description="of equal shares of text, for each classifier and (mean) for the ensemble")
    # First bucket of each level. Nemotron-CC publishes five levels and uses 18-19 as the high one; where the others begin is our choice.
    levels: dict[str, int] = Field({"low": 0, "medium_low": 7, "medium": 12, "medium_high": 16, "high": 18}, description="first bucket of each named level")
    text: str = Field("text", description="the column that is read and whose bytes are the weights")

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
    """Add `quality_bucket` (int8, 0 worst), `quality_level`, `quality_rank` (0 to 1) and `quality_scores` to every row; none is rejected.

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
    scores, bins = (_files(scored, kind) for kind in ("scores-", "bins-"))
    ranks = step("ranks", write_ranks, [{"bins": bins}], [scored.uri]).files[0]
    cuts = None
    if recipe.combine == "mean":
        means = step(
            "means",
            write_means,
            [{"index": index, "part": part, "scores": uri, "ranks": ranks} for index, (part, uri) in enumerate(zip(parts, scores, strict=True))],
            [scored.uri],
        )
        cuts = step("cuts", write_ranks, [{"bins": means.files}], [means.uri]).files[0]
    payloads = [{"part": part, "scores": uri, "ranks": ranks, "cuts": cuts} for part, uri in zip(parts, scores, strict=True)]
    stage = Stage(name="bucket", version=VERSION, plan=lambda inputs, config: payloads, run=write_buckets)
    return run_stage(stage, sources, nameless, out, cluster=cluster, progress=progress, name=name)


def write_scores(payload: dict, recipe: BucketRecipe, output: PartOutput) -> None:
    """`scores-N.arrow` (a float32 column a classifier, row by row) and `bins-N.arrow` (bytes of text per score bin)."""
    models = [_load(member.kind, path, member.label) for member, path in zip(recipe.classifiers, payload["models"], strict=True)]
    needed = [recipe.text, *({"signals"} if any(member.kind == "signals" for member in recipe.classifiers) else ())]
    columns: list[list[np.ndarray]] = [[np.empty(0, np.float32)] for _ in models]
    for batch in _batches(payload["part"], needed):
        for member, model, column in zip(recipe.classifiers, models, columns, strict=True):
            try:
                column.append(model.scores(batch["signals"].combine_chunks() if member.kind == "signals" else batch[recipe.text].to_pylist()))
            except ValueError as error:
                raise UserError(f"classifier {member.name}: {error}") from None
    scores = {member.name: np.concatenate(column) for member, column in zip(recipe.classifiers, columns, strict=True)}
    size = _sizes(payload["part"], recipe.text)
    write_arrow(output, f"scores-{payload['index']:05d}.arrow", scores)
    write_arrow(output, f"bins-{payload['index']:05d}.arrow", {name: np.bincount(bin_of(column), size, BINS) for name, column in scores.items()})


def write_ranks(payload: dict, recipe: BucketRecipe, output: PartOutput) -> None:
    """`ranks.arrow`: the rank float64 of every bin, from the parts' bins summed."""
    totals: dict[str, np.ndarray] = {}
    for uri in payload["bins"]:
        table = read_arrow(uri)
        for name in table.column_names:
            totals[name] = totals.get(name, np.zeros(BINS)) + table[name].to_numpy()
    write_arrow(output, "ranks.arrow", {name: ranks_of(total) for name, total in totals.items()})
    output.count(**{f"rank_error.{name}": float(total.max() / max(total.sum(), 1) / 2) for name, total in totals.items()})


def write_means(payload: dict, recipe: BucketRecipe, output: PartOutput) -> None:
    """`means-N.arrow`: bytes of text per bin of the mean rank."""
    mean = _member_ranks(payload).mean(0)
    weights = np.bincount(_rank_bin(mean), _sizes(payload["part"], recipe.text), BINS)
    write_arrow(output, f"means-{payload['index']:05d}.arrow", {"ensemble": weights})


def write_buckets(payload: dict, recipe: BucketRecipe, output: PartOutput) -> None:
    """The part's rows with their buckets."""
    members = _member_ranks(payload)
    rank = members.max(0) if payload["cuts"] is None else read_arrow(payload["cuts"])["ensemble"].to_numpy()[_rank_bin(members.mean(0))]
    bucket = np.minimum((rank * recipe.buckets).astype(np.int8), recipe.buckets - 1)
    level = pa.array(list(recipe.levels), pa.string()).take(pa.array(np.searchsorted(list(recipe.levels.values()), bucket, side="right") - 1))
    table = read_arrow(payload["scores"])
    scores = pa.StructArray.from_arrays([column.combine_chunks() for column in table.columns], names=table.column_names)
    added = {"quality_bucket": pa.array(bucket), "quality_level": level, "quality_rank": pa.array(rank.astype(np.float32)), "quality_scores": scores}
    begin = 0
    for rows in _batches(payload["part"]):
        rows = rows.drop_columns([name for name in added if name in rows.column_names])
        for name, values in added.items():
            rows = rows.append_column(name, values.slice(begin, rows.num_rows))
        output.read(rows.num_rows)
        output.write(rows)
        begin += rows.num_rows
    for number, size in enumerate(np.bincount(bucket, _sizes(payload["part"], recipe.text), recipe.buckets)):
        output.count(**{f"bytes.{number}": int(size)})
    for name, count in zip(*np.unique(level.to_numpy(zero_copy_only=False), return_counts=True), strict=True):
        output.count(**{f"levels.{name}": int(count)})


def _member_ranks(payload: dict) -> np.ndarray:
    """Each classifier's rank of each row of the part: float64 [classifiers, rows]."""
    scores, ranks = read_arrow(payload["scores"]), read_arrow(payload["ranks"])
    return np.array([ranks[name].to_numpy()[bin_of(scores[name].to_numpy())] for name in scores.column_names])


def bin_of(scores: np.ndarray) -> np.ndarray:
    """The bin int64 [D] of probabilities: uniform in the logit, clipped at +-LOGIT_RANGE."""
    p = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    logit = np.clip(np.log(p / (1 - p)), -LOGIT_RANGE, LOGIT_RANGE)
    return np.minimum(((logit + LOGIT_RANGE) * (BINS / (2 * LOGIT_RANGE))).astype(np.int64), BINS - 1)


def _rank_bin(ranks: np.ndarray) -> np.ndarray:
    return np.minimum((ranks * BINS).astype(np.int64), BINS - 1)


def ranks_of(weights: np.ndarray) -> np.ndarray:
    """The share of `weights` [BINS] below the middle of each bin: float64 [BINS] in [0, 1].

    Equal scores share a rank, and a constant classifier ranks all in the middle.
    """
    running = np.cumsum(weights)
    return (running - weights / 2) / (running[-1] or 1)


# ----------------------------------------------------------------------------------------------------------------- files


def _batches(part: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    with open_part(part) as parquet:
        if missing := [name for name in columns or () if name not in parquet.schema_arrow.names]:
            raise UserError(f"{part}: no column {missing[0]!r}, which a classifier reads")
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def _sizes(part: str, text: str) -> np.ndarray:
    """UTF-8 bytes of each row's text: float64 [rows]."""
    sizes = [pc.fill_null(pc.binary_length(rows[text]), 0).to_numpy().astype(np.float64) for rows in _batches(part, [text])]
    return np.concatenate([np.empty(0), *sizes])


def _files(dataset: Dataset, kind: str) -> list[str]:
    return [uri for uri in dataset.files if uri.rpartition("/")[2].startswith(kind)]


@functools.lru_cache(maxsize=8)  # once a process, not once a part
def _load(kind: str, path: str, label: str) -> FastText | SignalModel:
    try:
        if kind == "fasttext":
            return FastText(path, label)
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            return SignalModel.loads(file.read())
    except ValueError as error:
        raise UserError(str(error)) from None
