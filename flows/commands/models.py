"""Verbs over models: pretrain, sft, rl, eval, serve."""

from typing import Annotated, Any, Literal

import typer

from flows.commands.options import Json, Out, Overrides, Quiet, RecipeName, only_overrides, recipe_help

PANEL = "Models"


def _train(model: Any, run: Any, title: str, recipe: str | None, overrides: list[str] | None, out: str, quiet: bool, json: bool) -> None:
    from dataclasses import asdict

    from flows.console import progress_on_screen, summary
    from pipelines.recipe import load_recipe

    chosen = load_recipe(model, recipe, only_overrides(overrides))
    with progress_on_screen(quiet) as progress:
        result = run(chosen, out, progress)
    facts = {
        "model": result.model_path,
        "steps": result.steps,
        "trained tokens": result.tokens,
        **{k: v for k, v in result.metrics.items() if isinstance(v, int | float | str)},
    }
    summary(title, facts, quiet=quiet, as_json=json, result=asdict(result))


def pretrain(
    out: Out,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help("training.pretrain:PretrainRecipe") = False,
) -> None:
    """Pretrain (or continue from `init_from`) a hybrid Mamba-MoE model on token shards, by default under NVFP4.

    Examples:

        gristmill pretrain --out runs/p shards=shards model.size=tiny

        gristmill pretrain --out runs/c shards=shards-2 init_from=runs/p/model precision=bf16
    """
    from training.pretrain import PretrainRecipe
    from training.pretrain import pretrain as run

    _train(PretrainRecipe, run, "pretrained", recipe, overrides, out, quiet, json)


def sft(
    out: Out,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help("training.sft:SftRecipe") = False,
) -> None:
    """Fine-tune on conversations; the loss is on the assistant's tokens only.

    Example:

        gristmill sft --out runs/s init_from=runs/p/model 'datasets=[problems]' epochs=2
    """
    from training.sft import SftRecipe
    from training.sft import sft as run

    _train(SftRecipe, run, "fine-tuned", recipe, overrides, out, quiet, json)


def rl(
    out: Out,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
    recipe_help: recipe_help("training.rl.train:RlRecipe") = False,
) -> None:
    """Reinforcement learning on verifiable tasks (GRPO).

    Example:

        gristmill rl --out runs/r init_from=runs/s/model steps=40
    """
    from training.rl.train import RlRecipe
    from training.rl.train import rl as run

    _train(RlRecipe, run, "after RL", recipe, overrides, out, quiet, json)


def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder.", metavar="MODEL")],
    problems: Annotated[str | None, typer.Option("--problems", "-p", help="A dataset of problems to answer greedily.", metavar="DS")] = None,
    text: Annotated[str | None, typer.Option("--text", "-t", help="A dataset of documents to score.", metavar="DS")] = None,
    shards: Annotated[str | None, typer.Option("--shards", help="Shards whose validation split to score.", metavar="SHARDS")] = None,
    suite: Annotated[str | None, typer.Option("--suite", "-s", help="A YAML file with `suites:`, a list of suites.", metavar="FILE")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of an answer.")] = 128,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure a model: problems answered greedily and checked, text scored in nats a token and bits a byte.

    Examples:

        gristmill eval runs/sft/model --problems heldout/problems --text heldout/text

        gristmill eval runs/sft/model --suite suites.yaml --json
    """
    from flows.console import progress_on_screen, summary, table_of
    from pipelines.errors import UserError
    from training.evaluate import ProblemSuite, TextSuite
    from training.evaluate import evaluate as run

    suites: list[Any] = _suites(suite) if suite else []
    suites += [TextSuite(name="text", documents=text)] if text else []
    suites += [TextSuite(name="shards", shards=shards)] if shards else []
    suites += [ProblemSuite(name="problems", problems=problems, max_tokens=max_tokens)] if problems else []
    if not suites:
        raise UserError("nothing to measure: give --problems, --text, --shards or --suite")
    with progress_on_screen(quiet) as progress:
        figures = run(model, suites, progress=progress)
    facts = {name: entry["accuracy"] if entry["kind"] == "problems" else entry["nats_per_token"] for name, entry in figures.items()}
    rows = [(name, task, row["count"], row["accuracy"], row["truncated"]) for name, entry in figures.items() for task, row in entry.get("tasks", {}).items()]
    tables = [table_of("problems", ["suite", "task", "problems", "accuracy", "cut off"], rows)] if rows else []
    summary("measured", {"model": model, **facts}, tables, quiet=quiet, as_json=json, result=figures)


def _suites(path: str) -> list[Any]:
    """The suites of a YAML file, as mappings; evaluation validates them."""
    from pathlib import Path

    import yaml

    from pipelines.errors import UserError

    listed = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(listed, dict) or not isinstance(listed.get("suites"), list):
        raise UserError(f"{path}: expected a mapping with `suites:`, a list")
    return listed["suites"]


def serve(
    model: Annotated[str, typer.Argument(help="A model folder.", metavar="MODEL")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="The name the model answers to; its folder's without.")] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Sequences written at once.")] = 64,
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Tokens of prompt and answer together.")] = 1024,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="New tokens a request may ask for; as many as fit without.")] = None,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Sequences that may wait for a slot; beyond it clients get 429.")] = 256,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="Bytes of a request's body.", metavar="BYTES")] = 4 << 20,
    key_env: Annotated[str, typer.Option("--api-key-env", help="Variable that holds the key clients must send, if any.", metavar="NAME")] = "GRISTMILL_API_KEY",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(
        "--dtype", help="float32: a seed's answer is the same alone and in a crowd. bfloat16: faster, and weights stay as the folder has them.")] = "float32",
    prefixes: Annotated[int, typer.Option("--prefix-memory", min=0, help="For beginnings of prompts that come again.", metavar="BYTES")] = 0,
    drain: Annotated[int, typer.Option("--drain", min=0, help="Seconds that running requests have to end in when the server is told to stop.")] = 60,
    quiet: Quiet = False,
) -> None:
    """Serve a model over an OpenAI-compatible API (/v1/chat/completions, /v1/completions, /v1/models), with /health and /metrics (Prometheus).

    Streaming, tools, logprobs, seeds, stop strings, JSON schemas, thinking as `reasoning_content` and `thinking_budget` work with the official clients;
    docs/serving.md has every field. On SIGTERM or Ctrl-C no new connection is taken, and what is being written is finished.

    Examples:

        gristmill serve runs/first/rl/model --port 8000

        GRISTMILL_API_KEY=secret gristmill serve runs/first/rl/model --host 0.0.0.0 --queue 32 --max-tokens 512

        gristmill serve runs/first/rl/model --dtype bfloat16 --max-length 8192 --prefix-memory 500000000
    """
    import os
    from pathlib import Path

    import torch
    import uvicorn

    from flows.console import err
    from model.engine import Engine
    from model.serving import Limits, create_app
    from training.setup import load_model

    lm, tokenizer = load_model(model, **({"dtype": None, "compute_dtype": torch.bfloat16} if dtype == "bfloat16" else {}))
    label = name or Path(model).resolve().name
    engine = Engine(lm, tokenizer, max_slots=slots, max_length=max_length, prefix_bytes=prefixes)
    app = create_app(engine, label, limits=Limits(body_bytes=max_body, tokens=max_tokens, queue=queue), key=os.environ.get(key_env) or None)
    if not quiet:
        err.print(f"{label} at http://{host}:{port}/v1 (Ctrl-C stops)", markup=False)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=drain)


def add_to(app: typer.Typer) -> None:
    for name, verb in {"pretrain": pretrain, "sft": sft, "rl": rl, "eval": evaluate, "serve": serve}.items():
        app.command(name, rich_help_panel=PANEL)(verb)
