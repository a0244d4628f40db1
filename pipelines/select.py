"""Selection: other rules over a curated dataset, from its signals alone, in seconds.

Every row that curation measured is judged again, the kept and the refused alike; rows that never had a text (unreadable,
not HTML) stay refused for their old reason. Text is copied, never touched.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.rules import decide
from filters.signals import SIGNAL_TYPE
from pipelines.cluster import Cluster
from pipelines.curate import KEPT_SCHEMA, REJECTED_SCHEMA, CurateRecipe
from pipelines.dataset import Dataset, read_batches
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.stage import PartOutput, Stage, run_stage


def select(
    inputs: Sequence[str], recipe: CurateRecipe, out: str, cluster: Cluster | None = None, progress: Progress = silent, name: str | None = None
) -> Dataset:
    """Apply a recipe's families, thresholds and languages to curated datasets.

    Raises:
        UserError: an input is no curated dataset, or `out` belongs to another run.
    """
    return run_stage(STAGE, inputs, recipe, out, cluster=cluster, progress=progress, name=name)


def _plan(inputs: Sequence[str], recipe: CurateRecipe) -> list[dict[str, Any]]:
    payloads = []
    for uri in inputs:
        dataset = Dataset.open(uri)
        if dataset.meta["stage"] not in ("curate", "select"):
            raise UserError(f"{uri}: made by {dataset.meta['stage']}; selection reads what curate or select made")
        parts = {part.rpartition("/")[2]: [part] for part in dataset.parts}
        for part in dataset.rejected_parts:
            parts.setdefault(part.rpartition("/")[2], []).append(part)
        payloads += [{"files": parts[leaf]} for leaf in sorted(parts)]
    return payloads


def _run(payload: dict[str, Any], recipe: CurateRecipe, output: PartOutput) -> None:
    for file in payload["files"]:
        for batch in read_batches(file):
            kept, rejected = judge(pa.Table.from_batches([batch]), recipe)
            output.read(batch.num_rows)
            output.write(kept, rejected)


def judge(table: pa.Table, recipe: CurateRecipe) -> tuple[pa.Table, pa.Table]:
    """(kept, rejected) of rows with signals, by a recipe's rules."""
    rows = table.num_rows
    reasons = table["reason"].to_pylist() if "reason" in table.column_names else [""] * rows
    details = table["detail"].to_pylist() if "detail" in table.column_names else [""] * rows
    measured = np.flatnonzero(pc.is_valid(table["signals"]).to_numpy(zero_copy_only=False))
    for row in measured:
        reasons[row], details[row] = "", ""
    if len(measured):
        signals = table["signals"].combine_chunks().take(pa.array(measured)).cast(SIGNAL_TYPE)
        languages = [table["language"][int(row)].as_py() for row in measured]
        _, new_reasons, new_details = decide(signals, languages, recipe.tables(), recipe.bounds())
        for position, row in enumerate(measured):
            reasons[row], details[row] = new_reasons[position], new_details[position]
            if recipe.languages and languages[position] not in recipe.languages:
                reasons[row], details[row] = "language.unwanted", f"{languages[position]}, wanted {' '.join(recipe.languages)}"
    keep = pa.array([not reason for reason in reasons])
    told = table.select(KEPT_SCHEMA.names).append_column("reason", pa.array(reasons, pa.string())).append_column("detail", pa.array(details, pa.string()))
    return told.filter(keep).select(KEPT_SCHEMA.names).cast(KEPT_SCHEMA), told.filter(pc.invert(keep)).cast(REJECTED_SCHEMA)


STAGE = Stage(name="select", version=1, plan=_plan, run=_run)
