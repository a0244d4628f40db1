"""Selection: other rules over a curated dataset, from its signals alone, in seconds.

Every row that curation measured is judged again, the kept and the refused alike; rows that never had a text (unreadable,
not HTML) stay refused for their old reason. Text is copied, never touched: where a datatrove filter would edit it, its verdict counts alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cluster import Cluster
from pipelines.curate.judge import KEPT_SCHEMA, REJECTED_SCHEMA, datatrove_verdicts, verdicts
from pipelines.curate.recipe import CurateRecipe
from pipelines.dataset import Dataset, read_batches
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.stage import PartOutput, Stage, run_stage

BATCH_ROWS = 4096  # some tens of megabytes of text at once


def select(
    inputs: Sequence[str], recipe: CurateRecipe, out: str, cluster: Cluster | None = None, progress: Progress = silent, name: str | None = None
) -> Dataset:
    """Apply a recipe's families, thresholds and languages to curated datasets.

    Raises:
        UserError: an input is no curated dataset, or `out` belongs to another run.
    """
    return run_stage(STAGE, inputs, recipe, out, cluster=cluster, progress=progress, name=name)


def parts_of(uri: str) -> list[list[str]]:
    """The Parquet files of each part of a curated dataset: kept rows, then rejected ones.

    Raises:
        UserError: it is no curated dataset.
    """
    dataset = Dataset.open(uri)
    if dataset.meta["stage"] not in ("curate", "select"):
        raise UserError(f"{uri}: made by {dataset.meta['stage']}; selection reads what curate or select made")
    parts: dict[str, list[str]] = {}
    for part in (*dataset.parts, *dataset.rejected_parts):
        parts.setdefault(part.rpartition("/")[2], []).append(part)
    return [parts[leaf] for leaf in sorted(parts)]


def _plan(inputs: Sequence[str], recipe: CurateRecipe) -> list[dict[str, Any]]:
    return [{"files": files} for uri in inputs for files in parts_of(uri)]


def _run(payload: dict[str, Any], recipe: CurateRecipe, output: PartOutput) -> None:
    for file in payload["files"]:
        for batch in read_batches(file, batch_size=BATCH_ROWS):
            kept, rejected = judge(pa.Table.from_batches([batch]), recipe)
            output.read(batch.num_rows)
            output.write(kept, rejected)


def judge(table: pa.Table, recipe: CurateRecipe) -> tuple[pa.Table, pa.Table]:
    """(kept, rejected) of a curated dataset's rows, by another recipe's rules."""
    reasons, details = (table[name].to_pylist() if name in table.column_names else [""] * table.num_rows for name in ("reason", "detail"))
    told = table.select(KEPT_SCHEMA.names).cast(KEPT_SCHEMA)
    measured = np.flatnonzero(pc.is_valid(told["signals"]).to_numpy())
    rows = told.take(pa.array(measured))
    columns = rows["signals"].combine_chunks(), rows["language"].to_pylist(), rows["license_class"].to_pylist()
    judged, why = verdicts(*columns, recipe) if len(measured) else ([], [])
    if recipe.datatrove and "" in judged:
        staying = np.flatnonzero([not reason for reason in judged])
        texts = rows.take(pa.array(staying)).select(["id", "text", "url", "language"]).to_pylist()
        for row, verdict in zip(staying.tolist(), datatrove_verdicts(texts, recipe), strict=True):
            judged[row], why[row] = verdict.reason, verdict.detail
    for row, reason, detail in zip(measured.tolist(), judged, why, strict=True):
        reasons[row], details[row] = reason, detail
    keep = pa.array([not reason for reason in reasons])
    gone = told.append_column("reason", pa.array(reasons, pa.string())).append_column("detail", pa.array(details, pa.string()))
    return told.filter(keep), gone.filter(pc.invert(keep)).cast(REJECTED_SCHEMA)


STAGE = Stage(name="select", version=2, plan=_plan, run=_run)
