"""The part of the report about data that was made: mixtures asked and achieved, and what generation gave."""

import json
from pathlib import Path
from typing import Any

from pipelines.dataset import Dataset
from pipelines.shardset import ShardSet

TRAINED_BY = {"shards-1": "pretrain", "shards-2": "continued"}


def mixtures(folder: Path) -> list[dict[str, Any]]:
    """Per shard set: each source's share as asked and as read by the run that trained on it."""
    shown = []
    for name, run in TRAINED_BY.items():
        if not (folder / name / "manifest.json").is_file():
            continue
        shards = ShardSet.open(str(folder / name))
        plan, read = shards.plan, _ledger(folder / run)
        asked: dict[str, int] = {}
        planned: dict[str, int] = {}
        for phase in plan.phases:
            for part in phase.shares:
                asked[part.source] = asked.get(part.source, 0) + part.asked
                planned[part.source] = planned.get(part.source, 0) + part.tokens
        tokens = read or planned
        wished = _asked(folder / name) or asked
        sources = [
            {
                "name": source,
                "documents": sum(shard.documents for shard in shards.shards(source)),
                "available": shards.tokens[source],
                "asked": wished.get(source, 0) / max(1e-9, sum(wished.values())),
                "achieved": tokens.get(source, 0) / max(1, sum(tokens.values())),
                "tokens": tokens.get(source, 0),
                "epochs": tokens.get(source, 0) / max(1, shards.tokens[source]),
            }
            for source in shards.sources
        ]
        shown.append({"name": name, "tokens": plan.tokens, "steps": plan.steps, "sources": sources})
    return shown


def _asked(shards: Path) -> dict[str, float]:
    """The shares the recipe asked for, before they were fitted to what there was."""
    path = shards / "asked.json"
    return json.loads(path.read_text(encoding="utf-8"))["weights"] if path.is_file() else {}


def _ledger(run: Path) -> dict[str, int]:
    """Tokens read per source, as the finished run noted them."""
    path = run / "done.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["metrics"].get("ledger", {})) if path.is_file() else {}


def generation(folder: Path) -> dict[str, Any] | None:
    """Accepted and refused solutions per task, and the verifier's reasons."""
    if not Dataset.exists(str(folder / "generated")):
        return None
    dataset = Dataset.open(str(folder / "generated"))
    kept = dict(dataset.scan(["task"]).group_by("task").len().collect().iter_rows()) if dataset.rows else {}
    left = dict(dataset.scan_rejected(["task"]).group_by("task").len().collect().iter_rows()) if dataset.rejected_rows else {}
    tasks = [{"task": task, "accepted": kept.get(task, 0), "written": kept.get(task, 0) + left.get(task, 0)} for task in sorted(kept.keys() | left.keys())]
    for row in tasks:
        row["share"] = row["accepted"] / max(1, row["written"])
    return {
        "written": dataset.rows_in,
        "verified": int(dataset.counters.get("verified", dataset.rows)),
        "accepted": dataset.rows,
        "share": dataset.counters.get("verified", dataset.rows) / max(1, dataset.rows_in),
        "tasks": sorted(tasks, key=lambda row: -row["share"]),
        "most": max((row["written"] for row in tasks), default=1),
        "reasons": [{"reason": reason, "count": count} for reason, count in dataset.reasons.items()],
    }
