"""What all verbs that make a dataset share, stated once: inputs, a recipe and its changes, where to work, progress, the last screen.

A verb states its own options and does its own work; `dataset_verb` adds the options that all have and hands it a `Job`.
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flows.commands import options


@dataclass
class Job:
    """What a verb works with. `tables` are shown on the last screen, after why rows left."""

    inputs: list[str]
    recipe: Any
    out: str
    progress: Any
    workers: int | None
    scheduler: str | None
    until_done: ExitStack
    tables: list = field(default_factory=list)

    @cached_property
    def cluster(self) -> Any:
        """Opened when first asked for, so that a mistake in the inputs is told before any process starts."""
        from pipelines.cluster import open_cluster

        return self.until_done.enter_context(open_cluster(self.workers, self.scheduler))

    @property
    def means(self) -> dict[str, Any]:
        return {"cluster": self.cluster, "progress": self.progress}


def dataset_verb(
    title: str, recipe: str, *, of: str = "dataset", named: str | None = None, workers: int | None = None, parallel: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """A verb of `work(job, **its own options) -> Dataset`.

    Args:
        title: of the last screen.
        recipe: "module:Model" of its recipe.
        of: what its inputs are called; "" for a verb that has none.
        named: the recipe taken where none is named.
        workers: the default of `--workers`.
        parallel: whether it has `--workers` and `--scheduler`.
    """

    def decorate(work: Callable[..., Any]) -> Callable[..., None]:
        def verb(*, out: str, quiet: bool, json: bool, recipe_help: bool, workers: int | None = None, scheduler: str | None = None, **given: Any) -> None:
            if parallel and workers != 0 and scheduler is None:
                from pipelines.workers import prepare

                prepare(recipe.partition(":")[0])  # while this process reads the recipe, another imports what workers need
            from flows.console import progress_on_screen
            from pipelines.recipe import load_recipe

            if of:
                inputs, overrides = options.split_overrides(given.pop("inputs"))
                inputs = options.some(inputs, of)
            else:
                inputs, overrides = [], options.only_overrides(given.pop("overrides"))
            chosen = load_recipe(options.recipe_model(recipe), given.pop("recipe"), overrides)
            with ExitStack() as until_done:
                progress = until_done.enter_context(progress_on_screen(quiet))
                job = Job(inputs, chosen, out, progress, workers, scheduler, until_done)
                dataset = work(job, **given)
            _summary(title, dataset, job.tables, quiet, json)

        shared = {"workers": (options.Workers, workers), "scheduler": (options.Scheduler, None)} if parallel else {}
        shared |= {"quiet": (options.Quiet, False), "json": (options.Json, False), "recipe_help": (options.recipe_help(recipe), False)}
        _, *own = inspect.signature(work).parameters.values()
        parameters = [
            _parameter("inputs", options.Inputs) if of else _parameter("overrides", options.Overrides, None),
            _parameter("out", options.Out),
            *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
            _parameter("recipe", options.RecipeName, named),
            *(_parameter(name, kind, default) for name, (kind, default) in shared.items()),
        ]
        verb.__name__, verb.__doc__, verb.__module__ = work.__name__, work.__doc__, work.__module__
        verb.__signature__ = inspect.Signature(parameters)
        verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return verb

    return decorate


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _summary(verb: str, dataset: Any, tables: list, quiet: bool, json: bool) -> None:
    from flows.console import summary, table_of

    facts = {"dataset": dataset.uri, "rows in": dataset.rows_in, "kept": dataset.rows, "rejected": dataset.rejected_rows, "digest": dataset.digest}
    facts |= {name: value for name, value in dataset.counters.items() if name.startswith("auc")}
    result = {
        "dataset": dataset.uri,
        "name": dataset.name,
        "rows_in": dataset.rows_in,
        "rows": dataset.rows,
        "rejected_rows": dataset.rejected_rows,
        "reasons": dataset.reasons,
        "counters": dataset.counters,
        "digest": dataset.digest,
    }
    reasons = [(reason, count, f"{count / max(1, dataset.rows_in):.1%}") for reason, count in list(dataset.reasons.items())[:12]]
    why = [table_of("why rows left", ["reason", "rows", "of all"], reasons)] if reasons else []
    summary(verb, facts, [*why, *tables], quiet=quiet, as_json=json, result=result)
