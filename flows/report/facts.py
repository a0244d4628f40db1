"""Read a run folder into what the page shows. Files are the truth; what is not there yet is left out, not guessed."""

import json
from pathlib import Path
from typing import Any

from flows.report import documents, learning, lineage, made, quality
from flows.report.render import duration, share, size
from flows.steps import timings
from pipelines.errors import UserError
from pipelines.stage import code_version


def collect(folder: Path) -> dict[str, Any]:
    """Everything the template needs about a run that is finished or on its way.

    Raises:
        UserError: the folder holds no run.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder}: no run here (no run.json)")
    identity = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    funnel = documents.funnel(folder)
    facts: dict[str, Any] = {
        "funnel": funnel,
        "languages": documents.languages(folder),
        "duplicates": documents.duplicates(folder),
        "quality": quality.quality(folder),
        "mixtures": made.mixtures(folder),
        "curves": learning.curves(folder),
        "accuracy": learning.accuracy(folder),
        "leaks": documents.leaks(folder),
        "generation": made.generation(folder),
        "samples": learning.samples(folder),
        "timings": _timings(folder),
        "lineage": lineage.graph(folder),
        "reproduce": _reproduce(folder, identity),
        "version": code_version(),
    }
    return {**facts, **_head(folder, identity, facts)}


def _head(folder: Path, identity: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Title, lead and headline figures: the run on one screen of a phone."""
    figures: list[tuple[str, str]] = []
    if facts["funnel"]:
        first, last = facts["funnel"][0], facts["funnel"][-1]
        figures += [(f"{first['rows_in']:,}", "records read"), (f"{last['kept']:,}", "documents kept, deduplicated, for training")]
    if facts["mixtures"]:
        figures.append((_short(sum(mixture["tokens"] for mixture in facts["mixtures"])), "training tokens planned"))
    figures += learning.headline(folder)
    if facts["generation"]:
        figures.append((share(facts["generation"]["share"]), "of generated solutions passed the verifier"))
    if facts["timings"]:
        figures += [(duration(facts["timings"]["total"]), "in all steps"), (size(facts["timings"]["peak"]), "peak memory, all processes")]
    title = f"{facts['funnel'][0]['rows_in']:,} pages to a model that reasons" if facts["funnel"] else "A run that has just begun"
    source = "the sample crawl" if identity["crawl"] == "sample" else identity["crawl"]
    work = "curated, deduplicated, mixed with worked problems, trained, post-trained, and fed back what it wrote that a checker accepted"
    lead = f"From {source}, seed {identity['seed']}: {work}."
    return {"title": title, "lead": lead, "headline": [{"figure": figure, "label": label} for figure, label in figures[:8]]}


def _timings(folder: Path) -> dict[str, Any] | None:
    steps = timings(folder)
    if not steps:
        return None
    rows = [{"step": name, "seconds": entry["seconds"], "peak_bytes": entry["peak_bytes"], "sittings": entry["sittings"]} for name, entry in steps.items()]
    again = [f"{row['step']} ({row['sittings']})" for row in rows if row["sittings"] > 1]
    note = "Wall time of each step, and the most memory all processes of the run held during it (shared pages counted in each)."
    if again:
        note += f" Interrupted and taken up again: {', '.join(again)} sittings; the times are sums."
    seconds = [row["seconds"] for row in rows]
    return {"rows": rows, "longest": max(seconds), "total": sum(seconds), "peak": max(row["peak_bytes"] for row in rows), "note": note}


def _reproduce(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    source = "" if identity["crawl"] == "sample" else f" --crawl {identity['crawl']!r}"
    command = f"gristmill demo --out runs/again --seed {identity['seed']}{source}"
    facts = [(key, value) for key, value in identity.items()] + [(f"digest of {name}", digest) for name, digest in lineage.digests(folder).items()]
    return {"command": command, "facts": facts}


def _short(count: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return str(count)
