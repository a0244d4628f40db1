"""The curation job: a crawl to deduplicated documents. What a data engineer schedules."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from flows.data_steps import CRAWL, CURATE, DEDUP
from flows.steps import Group, Job
from pipelines.curate import CurateRecipe
from pipelines.dedup import DedupRecipe
from pipelines.recipe import Recipe, digest_of
from pipelines.stage import code_version


class CurationRecipe(Recipe):
    """Where pages come from and what is kept of them."""

    crawl: str = Field("sample", description="`sample`, files, folder, glob, URI, or commoncrawl:...")
    curate: CurateRecipe = CurateRecipe()
    dedup: DedupRecipe = DedupRecipe()


def identity(recipe: CurationRecipe) -> dict[str, Any]:
    """What makes two curation runs the same."""
    return {"job": "curation", "crawl": recipe.crawl, "recipe": digest_of(recipe.model_dump(mode="json", exclude={"crawl"})), "version": code_version()}


def tables(folder: Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The finished run's tables."""
    from flows.report.documents import funnel

    stages = funnel(folder)
    reasons = [{"stage": stage["stage"], "reason": row["reason"], "rows": row["count"]} for stage in stages for row in stage["reasons"]]
    return {"funnel": [{"stage": stage["stage"], "rows in": stage["rows_in"], "kept": stage["kept"]} for stage in stages], "reasons": reasons}


CURATION = Job(
    name="curation",
    about="a crawl to deduplicated documents",
    recipe=CurationRecipe,
    identity=identity,
    groups=lambda recipe: [Group(name="data", steps=(CRAWL, CURATE, DEDUP))],
    tables=tables,
)
