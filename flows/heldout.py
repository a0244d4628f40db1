"""Text set aside before any mixture is made, and the proof that it did not leak.

Which documents are held out is a hash of their id under a salt of this room's own, so it depends neither on parts nor
on workers nor on what else was crawled (unless nothing would be held out: then the document with the smallest hash is).
"""

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from flows.steps import Run
from pipelines.benchmark_items import BenchmarkFormat
from pipelines.dataset import Dataset
from pipelines.decontaminate import DecontaminateRecipe, decontaminate
from pipelines.recipe import Recipe
from pipelines.stage import PartOutput, Stage

SALT = "gristmill.heldout"


class HoldoutRecipe(Recipe):
    """One side of the split."""

    side: Literal["train", "heldout"]
    fraction: float = Field(0.06, gt=0, lt=1, description="of the documents to hold out")
    seed: int = 0


def position(document_id: str, seed: int) -> float:
    """Where a document's id falls in [0, 1): below the fraction it is held out."""
    return xxhash.xxh3_64_intdigest(f"{SALT}:{seed}:{document_id}".encode()) / 2**64


def _plan(inputs: Sequence[str], config: HoldoutRecipe) -> list[dict[str, Any]]:
    parts, smallest = [], 1.0
    for uri in inputs:
        dataset = Dataset.open(uri)
        parts += dataset.parts
        for batch in dataset.batches(["id"]):
            smallest = min([smallest, *(position(name, config.seed) for name in batch.column("id").to_pylist())])
    return [{"part": part, "below": max(config.fraction, smallest * (1 + 1e-12))} for part in parts]


def _run(payload: dict[str, Any], config: HoldoutRecipe, output: PartOutput) -> None:
    table = pq.read_table(payload["part"])
    output.read(table.num_rows)
    held = pa.array([position(name, config.seed) < payload["below"] for name in table.column("id").to_pylist()], pa.bool_())
    here = held if config.side == "heldout" else pa.compute.invert(held)
    away = table.filter(pa.compute.invert(here))
    bound = f"below {payload['below']:.6f}"
    reason, detail = ("split.train", f"hash not {bound}") if config.side == "heldout" else ("split.heldout", f"hash {bound}")
    for name, value in (("reason", reason), ("detail", detail)):
        away = away.append_column(name, pa.array([value] * away.num_rows, pa.string()))
    output.write(table.filter(here), away)


def clear_of_leaks(train: Dataset, held_out: Dataset, run: Run) -> Dataset:
    """Training documents without those that hold a good part of a held-out one: RUN/text."""
    recipe = run.recipe.leaks.model_copy(update={"formats": (BenchmarkFormat(fields=("text",)),)})
    return decontaminate([train], [held_out.uri], recipe, run.uri("text"), cluster=run.cluster, progress=run.progress, name="text")


def found_in(made: Dataset, held_out: Dataset, kind: str, run: Run) -> Dataset:
    """Generated documents, those that hold a held-out problem whole or a good part of a held-out text rejected: RUN/heldout/written-<kind>."""
    if kind == "problems":
        recipe = DecontaminateRecipe(preset="item", formats=(BenchmarkFormat(fields=("question",)),))
    else:
        recipe = run.recipe.leaks.model_copy(update={"formats": (BenchmarkFormat(fields=("text",)),)})
    return decontaminate([made], [held_out.uri], recipe, run.uri(f"heldout/written-{kind}"), cluster=run.cluster, progress=run.progress)


HOLDOUT = Stage(name="holdout", version=1, plan=_plan, run=_run)
