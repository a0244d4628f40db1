"""Find the parts of a run: a person names the run, a room wants its datasets or its shards."""

import json
from pathlib import Path

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


def shards_of(run: str, stage: str) -> str:
    """The shards a run read: of a demo's folder by stage; of a training run's folder by its digests; or shards themselves.

    Raises:
        UserError: there are none.
    """
    folder = Path(run)
    if (folder / "manifest.json").is_file():
        return run
    if stage not in SHARDS:
        raise UserError(f"--stage {stage}: only {' and '.join(SHARDS)} read shards")
    if (folder / SHARDS[stage] / "manifest.json").is_file():
        return str(folder / SHARDS[stage])
    if (folder / "run.json").is_file():
        wanted = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("identity", {}).get("inputs", {}).get("shards")
        for manifest in sorted(folder.parent.glob("*/manifest.json")):
            if wanted and json.loads(manifest.read_text(encoding="utf-8")).get("dataset_digest") == wanted:
                return str(manifest.parent)
    raise UserError(f"{run}: no shards of {stage} here; name the shards' folder instead")
