"""Steps from a crawl to deduplicated documents, shared by the jobs that have them."""

import json
from typing import Any

import fsspec

from flows.heldout import HOLDOUT, HoldoutRecipe, clear_of_leaks
from flows.steps import Run, Step, write_json
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.stage import run_stage


def dataset_step(name: str, run: Any, folder: str | None = None) -> Step:
    """A step that leaves a closed dataset in RUN/<folder> and spreads over the cluster."""
    place = folder or name
    return Step(name=name, run=run, done=lambda job: Dataset.exists(job.uri(place)), spreads=True)


def file_step(name: str, run: Any, *path: str) -> Step:
    """A step that leaves one file, written last and by rename."""
    return Step(name=name, run=run, done=lambda job: job.path(*path).is_file())


def kept(dataset: Dataset) -> dict[str, Any]:
    """A dataset's figures for the run's record."""
    return {"rows in": dataset.rows_in, "kept": dataset.rows, "digest": dataset.digest[:12]}


def crawl(run: Run) -> dict[str, Any]:
    """Resolve the crawl's source to files, downloading what is remote and small; the list is RUN/crawl.json."""
    from pipelines.crawl.sources import resolve

    files = resolve(run.recipe.crawl, run.uri("crawl"), run.progress)
    sizes = [fsspec.url_to_fs(file)[0].size(fsspec.url_to_fs(file)[1]) or 0 for file in files]
    write_json(run.path("crawl.json"), {"source": run.recipe.crawl, "files": [str(file) for file in files], "bytes": sum(sizes)})
    return {"files": len(files), "megabytes": round(sum(sizes) / 1e6, 1)}


def curate(run: Run) -> dict[str, Any]:
    """Crawl files -> kept and rejected documents."""
    from pipelines.curate import curate as work

    files = json.loads(run.path("crawl.json").read_text(encoding="utf-8"))["files"]
    dataset = work(files, run.recipe.curate, run.uri("curated"), cluster=run.cluster, progress=run.progress)
    if not dataset.rows:
        first = ", ".join(f"{reason} {count:,}" for reason, count in list(dataset.reasons.items())[:3]) or "it holds no pages"
        raise UserError(f"{run.recipe.crawl}: nothing was kept of {dataset.rows_in:,} records ({first}); see {dataset.uri}/rejected")
    return kept(dataset)


def dedup(run: Run) -> dict[str, Any]:
    """Curated documents -> one of each."""
    from pipelines.dedup import dedup as work

    return kept(work([run.uri("curated")], run.recipe.dedup, run.uri("deduped"), cluster=run.cluster, progress=run.progress))


def holdout(run: Run) -> dict[str, Any]:
    """Deduplicated documents -> those to train on and those held out, by a hash of their ids; then what leaks leaves.

    Training documents that hold a good part of a held-out document (`leaks.coverage` of its n-grams) are dropped, and
    RUN/heldout/leaks.json says how many.
    """
    sides = {}
    for side, place in (("heldout", "heldout/text"), ("train", "heldout/rest")):
        config = HoldoutRecipe(side=side, fraction=run.recipe.heldout.text_fraction, seed=run.recipe.seed)
        sides[side] = run_stage(HOLDOUT, [run.uri("deduped")], config, run.uri(place), cluster=run.cluster, progress=run.progress, name=place)
    clean = clear_of_leaks(sides["train"], sides["heldout"], run)
    if not clean.rows:
        raise UserError(f"{run.recipe.crawl}: no document is left to train on; it needs more, or more different, pages")
    return {"held out": sides["heldout"].rows, "leaking": clean.rejected_rows, "to train on": clean.rows, "digest": clean.digest[:12]}


CRAWL = file_step("crawl", crawl, "crawl.json")
CURATE = dataset_step("curate", curate, "curated")
DEDUP = dataset_step("dedup", dedup, "deduped")
HELD_OUT = dataset_step("holdout", holdout, "text")
