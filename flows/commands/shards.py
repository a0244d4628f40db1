"""Verbs from text to tokens: tokenizer, mix, tokenize, shards verify | inspect | export."""

from typing import Annotated

import typer

from flows.commands.options import Json, Out, Overrides, Quiet, Scheduler, Workers, only_overrides

shards_app = typer.Typer(no_args_is_help=True, help="Look after token shards: verify, inspect, export.")

Mixture = Annotated[str, typer.Argument(help="A mixture: YAML with sources, weights in tokens, repetition caps.", metavar="MIXTURE.yaml")]
TokenizerPath = Annotated[str, typer.Option("--tokenizer", "-t", help="A tokenizer.json, or a folder with one.", metavar="FILE")]
Shards = Annotated[str, typer.Argument(help="A folder that `gristmill tokenize` wrote.", metavar="SHARDS")]


def tokenizer(
    datasets: Annotated[list[str], typer.Argument(help="Datasets with a `text` or a `messages` column.", metavar="DS...")],
    out: Out,
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-V", min=272, help="Tokens in all; 16 special ones and 256 bytes included.")] = 32_000,
    max_bytes: Annotated[int | None, typer.Option("--max-bytes", help="Read at most so much text of each dataset.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a byte-level BPE tokenizer; every digit is a token, the chat format's special tokens are reserved.

    Example:

        gristmill tokenizer deduped problems --out tokenizer --vocab-size 8192
    """
    from flows.console import progress_on_screen, summary
    from model.chat import SPECIAL_TOKENS
    from pipelines.tokenizer import load_tokenizer, tokenizer_digest, train_tokenizer

    with progress_on_screen(quiet) as progress:
        path = train_tokenizer(datasets, vocab_size, out, special_tokens=SPECIAL_TOKENS, max_bytes=max_bytes, progress=progress)
    made = load_tokenizer(path)
    summary("tokenizer", {"tokenizer": str(path), "tokens": made.get_vocab_size(), "digest": tokenizer_digest(made)}, quiet=quiet, as_json=json)


def mix(
    mixture: Mixture,
    tokenizer: TokenizerPath = "",
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="Plan and check, train nothing: what the verb does without --search, said aloud.")] = False,
    shards: Annotated[str | None, typer.Option("--shards", help="Plan over these shards exactly, not over a sample of the datasets.", metavar="SHARDS")] = None,
    search: Annotated[bool, typer.Option("--search", help="Propose weights from small training runs; needs --out.")] = False,
    out: Annotated[str | None, typer.Option("--out", "-o", help="--search: where runs and findings go; the same line again goes on.", metavar="OUT")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="--search: what it spends, e.g. --set proxies=32.", metavar="KEY=VALUE")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Plan a mixture before anything runs: the tree of sources, tokens, sequences and epochs per source and phase.

    Shortfalls, over-repetition and shares that round to nothing are refused with the numbers (exit code 2). With `after: {plan: DIGEST, step: N}`
    in the mixture (both stand in a loader's state) and --shards, the plan goes on after an earlier one, with unread documents first.

    Examples:

        gristmill mix mixture.yaml --tokenizer tokenizer --check tokens=2000000

        gristmill mix reweighted.yaml --shards shards

        gristmill mix mixture.yaml --tokenizer tokenizer --search --out search --set proxies=24 --set proxy_steps=120
    """
    from flows.console import out as screen
    from flows.console import summary
    from pipelines.errors import UserError
    from pipelines.mixture import load_mixture

    recipe = load_mixture(mixture, only_overrides(overrides))
    if search:
        _search(recipe, tokenizer, out, settings, quiet, json)
        return
    if shards is None and not tokenizer:
        raise UserError("mix needs --tokenizer (to estimate tokens from a sample), or --shards (to count them)")
    if shards is None:
        from pipelines.shards import check as estimated

        planned = estimated(recipe, tokenizer)
    else:
        from pipelines.loader import plan_over
        from pipelines.shardset import ShardSet

        planned = plan_over(ShardSet.open(shards), recipe)
    if json:
        summary("mixture", {}, as_json=True, result=planned.model_dump(mode="json") | {"digest": planned.digest})
    elif not quiet:
        screen.print(planned)


def _search(mixture, tokenizer: str, out: str | None, settings: list[str] | None, quiet: bool, json: bool) -> None:
    from flows.console import progress_on_screen, summary, table_of
    from flows.mixture_search import SearchRecipe
    from flows.mixture_search import search as run
    from pipelines.errors import UserError
    from pipelines.recipe import load_recipe

    if not out or not tokenizer:
        raise UserError("--search needs --out and --tokenizer")
    with progress_on_screen(quiet) as progress:
        found = run(mixture, tokenizer, out, load_recipe(SearchRecipe, None, settings or ()), progress=progress)
    rows = []
    for name in found["sources"]:
        at = found["held_out"].index(name) if name in found["held_out"] else None
        losses = [sum(row[at] for row in found["confirmed"][kind]["losses"]) / len(found["confirmed"][kind]["losses"]) if at is not None else None
                  for kind in ("uniform", "proposed")]
        rows.append((name, f"{1 / len(found['sources']):.2%}", f"{found['proposed'][name]:.2%}", *losses))
    means = [sum(found["confirmed"][kind]["mean"]) / len(found["confirmed"][kind]["mean"]) for kind in ("uniform", "proposed")]
    facts = {
        "proxies": len(found["proxies"]),
        "rank correlation of left-out predictions": found["left_out_rank_correlation"],
        "confirmed, even weights": means[0],
        "confirmed, proposed weights": means[1],
        "better": "yes" if means[1] < means[0] else "no",
        "mixture": f"{out}/mixture.yaml",
        "plot": f"{out}/search.svg",
    }
    table = table_of("held-out nats a token", ["source", "even", "proposed", "loss, even", "loss, proposed"], rows)
    summary("mixture search", facts, [table], quiet=quiet, as_json=json, result=found)


def tokenize(
    mixture: Mixture,
    out: Out,
    tokenizer: TokenizerPath,
    overrides: Overrides = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a mixture's token shards: Megatron .bin/.idx, a sidecar of documents, a manifest of checksums.

    Example:

        gristmill tokenize mixture.yaml --tokenizer tokenizer --out shards --workers 8
    """
    from flows.console import progress_on_screen
    from pipelines.cluster import open_cluster
    from pipelines.mixture import load_mixture
    from pipelines.shards import tokenize as run

    recipe = load_mixture(mixture, only_overrides(overrides))
    with progress_on_screen(quiet) as progress, open_cluster(workers, scheduler) as cluster:
        shards = run(recipe, tokenizer, out, cluster=cluster, progress=progress)
    shards_summary(shards, quiet, json)


def shards_summary(shards, quiet: bool, json: bool) -> None:
    """The last screen of a verb that writes shards."""
    from flows.console import summary, table_of

    plan = shards.plan
    facts = {"shards": shards.uri, "tokens": sum(shards.tokens.values()), "steps planned": plan.steps, "plan digest": plan.digest}
    rows = [(share.source, share.asked, share.tokens, share.sequences, share.epochs) for phase in plan.phases for share in phase.shares]
    table = table_of("the plan", ["source", "tokens asked", "tokens", "sequences", "epochs"], rows)
    summary("token shards", facts, [table], quiet=quiet, as_json=json, result={**facts, "tokens": shards.tokens, "plan": plan.model_dump(mode="json")})


def verify(shards: Shards, quiet: Quiet = False, json: Json = False) -> None:
    """Compare every file with the manifest's checksums; exit code 1 if one is damaged or missing.

    Example:

        gristmill shards verify shards
    """
    from flows.console import err, progress_on_screen, summary
    from pipelines.shards import verify as run

    with progress_on_screen(quiet) as progress:
        faults = run(shards, progress)
    summary("verified", {"shards": shards, "damaged files": len(faults)}, quiet=quiet, as_json=json, result={"shards": shards, "faults": faults})
    for fault in faults:
        err.print(fault, markup=False)
    raise typer.Exit(1 if faults else 0)


def inspect(
    shards: Shards,
    n: Annotated[int, typer.Option("-n", min=1, help="Documents of each source and split.")] = 3,
    source: Annotated[str | None, typer.Option("--source", help="Only this source.")] = None,
    json: Json = False,
) -> None:
    """Show the first documents of each source as text.

    Example:

        gristmill shards inspect shards -n 1 --source web
    """
    from dataclasses import asdict

    from flows.console import out as screen
    from flows.console import summary
    from pipelines.shards import inspect as run

    documents = list(run(shards, n, source))
    if json:
        summary("", {}, as_json=True, result=[asdict(document) for document in documents])
        return
    for document in documents:
        screen.rule(f"{document.source} · {document.split} · {document.id} · {document.tokens:,} tokens", align="left")
        screen.print(document.text, markup=False, soft_wrap=True)


def export(
    shards: Shards,
    out: Out,
    to: Annotated[str, typer.Option("--to", help="mds (MosaicML), ds (datatrove) or npy (OLMo).", metavar="FORMAT")] = "ds",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write the shards in another trainer's format. Megatron-core reads them as they are.

    Example:

        gristmill shards export shards --to mds --out shards-mds
    """
    from flows.console import progress_on_screen, summary
    from pipelines.export import export as run

    with progress_on_screen(quiet) as progress:
        folders = run(shards, to, out, progress=progress)
    summary("exported", {"format": to, "folders": ", ".join(map(str, folders))}, quiet=quiet, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command("tokenizer", rich_help_panel="Tokens")(tokenizer)
    app.command("mix", rich_help_panel="Tokens")(mix)
    app.command("tokenize", rich_help_panel="Tokens")(tokenize)
    shards_app.command("verify")(verify)
    shards_app.command("inspect")(inspect)
    shards_app.command("export")(export)
    app.add_typer(shards_app, name="shards", rich_help_panel="Tokens")
