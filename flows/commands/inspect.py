"""Verbs about what was made: why, trace, report, forget, card."""

from typing import Annotated

import typer

from flows.commands.options import Json, Quiet, Workers

RunFolder = Annotated[str, typer.Argument(help="A run's folder.", metavar="RUN")]


def report(
    run: RunFolder,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The HTML file; RUN/report.html without.", metavar="FILE")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write the report of a demo run, finished or not: one HTML file that opens offline.

    Example:

        gristmill report runs/first --out report.html
    """
    from pathlib import Path

    from flows.console import summary
    from flows.report.facts import collect
    from flows.report.render import write_report

    path = write_report(collect(Path(run)), out or f"{run.rstrip('/')}/report.html")
    summary("report", {"report": str(path), "bytes": path.stat().st_size}, quiet=quiet, as_json=json)


def why(
    page: Annotated[str, typer.Argument(help="A page's URL, or a document's id.", metavar="URL-or-ID")],
    run: Annotated[str, typer.Argument(help="A run's folder, or one dataset.", metavar="RUN|DS")],
    json: Json = False,
) -> None:
    """What happened to a page: every stage that saw it, the rule that decided, the value and its bound.

    Example:

        gristmill why https://example.org/page runs/first
    """
    from dataclasses import asdict

    from flows.console import out as screen
    from flows.console import summary, table_of
    from flows.run_folder import document_datasets
    from pipelines.curate.why import explain

    fates = explain(page, document_datasets(run))
    if json:
        summary("", {}, as_json=True, result=[asdict(fate) for fate in fates])
        return
    for fate in fates:
        verdict = "kept" if fate.kept else f"left: {fate.reason}"
        screen.rule(f"{fate.stage} · {verdict}", align="left")
        facts = {
            "dataset": fate.dataset,
            **({"why": fate.detail} if fate.detail else {}),
            **{key: value for key, value in fate.row.items() if value not in (None, "") and key not in ("reason", "detail")},
        }
        summary(str(fate.row.get("title") or page), facts)
        if fate.decisions:
            columns = list(asdict(fate.decisions[0]))
            screen.print(table_of("rules, in order", columns, [[asdict(decision)[column] for column in columns] for decision in fate.decisions]))


def trace(
    run: Annotated[str, typer.Argument(help="Back: a demo's folder, a training run's folder, or shards. Forward: any folder above them.", metavar="RUN")],
    step: Annotated[int | None, typer.Option("--step", min=0, help="Back from this training step ...", show_default=False)] = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="... and this row of its batch.")] = 0,
    token: Annotated[int | None, typer.Option("--token", min=0, help="Only the document under this position.")] = None,
    stage: Annotated[str, typer.Option("--stage", help="Of a demo: pretrain or continued.")] = "pretrain",
    url: Annotated[str | None, typer.Option("--url", help="Forward from the page with this URL (or from a document's id).", metavar="URL|ID")] = None,
    json: Json = False,
) -> None:
    """Back from a batch's tokens to the WARC record or the generator; forward from a page to the runs and steps that read it.

    Examples:

        gristmill trace runs/first --step 100 --sample 3

        gristmill trace runs/first --step 10 --sample 0 --token 17 --stage continued

        gristmill trace runs --url https://example.org/page
    """
    from dataclasses import asdict

    from flows.console import out as screen
    from flows.console import summary
    from pipelines.errors import UserError

    if (step is None) == (url is None):
        raise UserError("trace what? give --step (back, to the record) or --url (forward, to the runs that read it)")
    if url is not None:
        from flows.consumption import journey
        from flows.journey_tree import tree

        found = journey(run, url)
        shown = tree(found)
    else:
        from flows.run_folder import shards_of
        from pipelines.lineage import trace as run_trace

        shards, plan = shards_of(run, stage)
        found = shown = run_trace(shards, step, sample, token, plan=plan)
    if json:
        summary("", {}, as_json=True, result=asdict(found))
    else:
        screen.print(shown)


def forget(
    shards: Annotated[str, typer.Argument(help="Shards to write anew without the documents.", metavar="SHARDS")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the new version.", metavar="OUT")],
    url: Annotated[list[str] | None, typer.Option("--url", help="Documents of this URL; may be repeated.")] = None,
    host: Annotated[list[str] | None, typer.Option("--host", help="Documents of this host; may be repeated.")] = None,
    id: Annotated[list[str] | None, typer.Option("--id", help="This document; may be repeated.")] = None,
    list_file: Annotated[str | None, typer.Option("--list", help="A file with an id a line.", metavar="FILE")] = None,
    runs: Annotated[str | None, typer.Option("--runs", help="Where to look for training runs that read them; beside SHARDS without.", metavar="DIR")] = None,
    workers: Workers = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write datasets and shards anew without some documents and what was generated from them; name the runs that read them.

    Example:

        gristmill forget shards --host example.org --out forgotten
    """
    from pathlib import Path

    from flows.console import progress_on_screen, summary
    from flows.consumption import consumptions, datasets_in
    from pipelines.cluster import open_cluster
    from pipelines.errors import UserError
    from pipelines.forget import forget as run
    from pipelines.lineage import ids_of

    ids = [*(id or ()), *(Path(list_file).read_text(encoding="utf-8").split() if list_file else ())]
    ids += [found for value in url or () for found in ids_of(shards, url=value)] + [found for value in host or () for found in ids_of(shards, host=value)]
    if not ids:
        raise UserError("forget what? no document matches; give --url, --host, --id or --list")
    with progress_on_screen(quiet) as progress, open_cluster(workers) as cluster:
        gone = run(shards, ids, out, cluster=cluster, progress=progress)
    beside = runs or str(Path(shards).absolute().parent)
    consumed = consumptions(beside, [*gone.requested, *gone.descendants], datasets_in(beside))
    read = [f"{run.run} ({len(run.steps)} times)" for run in consumed]
    facts = {
        "shards": gone.shards.uri,
        "documents forgotten": len(gone.requested),
        "made from them, gone too": len(gone.descendants),
        "readings in the old plan": len(gone.readings),
        "runs that read them": "; ".join(read) or "none",
        "still hold them": "; ".join(gone.superseded) or "nothing else",
    }
    summary("forgotten", facts, quiet=quiet, as_json=json)


def card(uri: Annotated[str, typer.Argument(help="A dataset or shards.", metavar="DS|SHARDS")]) -> None:
    """Print a dataset card (Hugging Face format): sources, filters, counts, licences, limits.

    Example:

        gristmill card deduped > README.md
    """
    from pipelines.card import card as run

    print(run(uri))


def add_to(app: typer.Typer) -> None:
    for verb in (why, trace, report, forget, card):
        app.command(verb.__name__, rich_help_panel="Questions")(verb)
