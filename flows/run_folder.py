"""Find the parts of a run: a person names the run, a room wants its datasets or its shards."""

import json
from pathlib import Path
from typing import Any

from pipelines.dataset import Dataset
from pipelines.errors import UserError

DOCUMENTS = ("curated", "deduped", "heldout/text", "heldout/rest", "text")  # in the order a page passes them
SHARDS = {"pretrain": "shards-1", "continued": "shards-2"}


def document_datasets(run: str) -> list[str]:
    """The closed datasets of documents in a run's folder, or the one dataset that was named.

    Raises:
        UserError: there is none.
    """
    if Dataset.exists(run):
        return [run]
    found = [f"{run.rstrip('/')}/{name}" for name in DOCUMENTS if Dataset.exists(f"{run.rstrip('/')}/{name}")]
    if not found:
        raise UserError(f"{run}: neither a dataset nor a run with curated documents")
    return found


def shards_of(run: str, stage: str) -> tuple[str, str]:
    """(shards, digest of the plan) that a run read: of a demo's folder by stage; of a training run's folder; or shards themselves, with their own plan.

    Raises:
        UserError: there are none.
    """
    folder = Path(run)
    if (folder / "manifest.json").is_file():
        return run, ""
    if stage not in SHARDS:
        raise UserError(f"--stage {stage}: only {' and '.join(SHARDS)} read shards")
    if (folder / SHARDS[stage] / "manifest.json").is_file():
        read = _inputs(folder / stage)
        return str(folder / SHARDS[stage]), read.get("plan", "")
    read = _inputs(folder)
    for manifest in sorted(folder.parent.glob("*/manifest.json")):
        if read.get("shards") and json.loads(manifest.read_text(encoding="utf-8")).get("dataset_digest") == read["shards"]:
            return str(manifest.parent), read["plan"]
    raise UserError(f"{run}: no shards of {stage} here; name the shards' folder instead")


def _inputs(run: Path) -> dict[str, Any]:
    """What a training run says it was started on; empty where no run lies."""
    path = run / "run.json"
    return json.loads(path.read_text(encoding="utf-8")).get("identity", {}).get("inputs", {}) if path.is_file() else {}
