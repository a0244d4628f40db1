"""No benchmark in the training data: documents that share n-grams with held-out items leave, with the item and the span shown.

    index      all items, normalised, less what is ordinary among them
    matches    each part of the data: which n-grams occur where; the reference's parts are counted only
    common     n-grams found in many documents
    <out>      each part again: coverage of the items, verdict

Normalisation sees through case, accents, punctuation, line breaks, look-alike and invisible characters. Items with fewer than n words are looked
for as a whole; with `n: null` every item is (the right setting for templated problems, which share phrases by design).
"""

from collections.abc import Sequence
from typing import Any

from pipelines.benchmark_items import benchmark_files
from pipelines.cluster import Cluster
from pipelines.dataset import Dataset
from pipelines.decontaminate.index import write_index
from pipelines.decontaminate.match import write_matches
from pipelines.decontaminate.recipe import DecontaminateRecipe
from pipelines.decontaminate.verdict import write_common, write_verdicts
from pipelines.errors import UserError
from pipelines.progress import Progress, silent
from pipelines.stage import Stage, run_stage

VERSION = 2


def decontaminate(
    inputs: Sequence[str | Dataset],
    against: Sequence[str],
    recipe: DecontaminateRecipe,
    out: str,
    cluster: Cluster | None = None,
    progress: Progress = silent,
    name: str | None = None,
) -> Dataset:
    """Remove the documents of `inputs` that contain items of the benchmark files, folders, archives or datasets `against`.

    Rejected rows have reason "contaminated.ngram" and a JSON `detail`: item, coverage (share of its n-grams), begin and end (bytes of the
    matching text), span (that text), item_text.

    Raises:
        UserError: a file is missing or of an unknown format, no item can be looked for, or the inputs lack the text column.
    """
    uris = [entry.uri if isinstance(entry, Dataset) else str(entry) for entry in inputs]
    if not against:
        raise UserError("decontaminate: against what? name benchmark files or datasets")
    benchmarks = list(dict.fromkeys(file for entry in against for file in benchmark_files(str(entry))))
    nameless = recipe.model_copy(update={"reference": ()})  # paths are no part of what a run is: the reference is an input, known by its digest

    def step(label: str, run: Any, payloads: list[dict], sources: Sequence[str]) -> Dataset:
        stage = Stage(name=f"decontaminate.{label}", version=VERSION, plan=lambda inputs, config: payloads, run=run)
        return run_stage(stage, sources, nameless, f"{out}/work/{label}", cluster=cluster, progress=progress)

    index = step("index", write_index, [{"against": benchmarks}], benchmarks)
    if not index.counters["items_indexed"]:
        facts = f"{index.counters['items_short']:g} are too short (min_units {recipe.min_units}), {index.counters['items_ordinary']:g} hold only common words"
        raise UserError(f"decontaminate: no item of {', '.join(map(str, against))} can be looked for ({facts})")
    built = {"index": index.files, "digest": index.digest}
    parts, ordinary = _parts(uris), _parts(recipe.reference)
    payloads = [{"part": part, "number": number, "reference": number >= len(parts), **built} for number, part in enumerate([*parts, *ordinary])]
    matches = step("matches", write_matches, payloads, [*uris, *recipe.reference, index.uri])
    found = [uri for uri in matches.files if "/matches-" in uri]
    counted = [uri for uri in matches.files if "/documents-" in uri]
    common = step("common", write_common, [{"data": counted[: len(parts)], "reference": counted[len(parts) :], **built}], [index.uri, matches.uri])
    built |= {"common": common.files[0], "common_digest": common.digest}
    payloads = [{"part": part, "matches": uri, **built} for part, uri in zip(parts, found, strict=True)]
    stage = Stage(name="decontaminate", version=VERSION, plan=lambda inputs, config: payloads, run=write_verdicts)
    return run_stage(stage, [*uris, index.uri, common.uri], nameless, out, cluster=cluster, progress=progress, name=name)


def _parts(uris: Sequence[str]) -> list[str]:
    return [part for uri in uris for part in ([uri] if uri.endswith(".parquet") else Dataset.open(uri).parts)]
