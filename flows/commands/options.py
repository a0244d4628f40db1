"""Options that many verbs share, worded once; overrides told from inputs; help made from a recipe's pydantic model."""

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

OVERRIDE = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]*=")

Inputs = Annotated[
    list[str],
    typer.Argument(help="Inputs, and recipe keys to change as key=value (dotted keys, YAML values).", metavar="INPUT... [KEY=VALUE]...", show_default=False),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Recipe keys to change: key=value (dotted keys, YAML values).", metavar="[KEY=VALUE]...", show_default=False)
]
Out = Annotated[
    str, typer.Option("--out", "-o", help="Where to write; running the same line again finishes an interrupted run.", metavar="OUT", show_default=False)
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", help="A recipe that ships, by name, or a YAML file; its defaults without.", metavar="NAME|FILE")
]
Workers = Annotated[
    int | None, typer.Option("--workers", "-w", min=0, help="Worker processes on this machine; 0: serial, in this process. Default: one a core.", metavar="N")
]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="A Dask scheduler that already runs, e.g. tcp://10.0.0.1:8786.", metavar="ADDRESS")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]


def split_overrides(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(inputs, overrides): `key=value` is an override unless a file of that very name exists."""
    inputs, overrides = [], []
    for argument in arguments or ():
        (overrides if OVERRIDE.match(argument) and not Path(argument).exists() else inputs).append(argument)
    return inputs, overrides


def only_overrides(arguments: Sequence[str] | None) -> list[str]:
    """All arguments as overrides.

    Raises:
        UserError: one is not of the form key=value.
    """
    from pipelines.errors import UserError

    for argument in arguments or ():
        if not OVERRIDE.match(argument):
            raise UserError(f"unexpected argument {argument!r}: recipe keys are changed with key=value")
    return list(arguments or ())


def some(inputs: Sequence[str], what: str) -> list[str]:
    """The inputs, or the user's mistake of giving none."""
    from pipelines.errors import UserError

    if not inputs:
        raise UserError(f"no {what} given")
    return list(inputs)


def recipe_model(name: str) -> Any:
    """The recipe that "module:Model" names, imported only now: a verb's `--help` must not wait for what the verb needs."""
    module, _, model = name.partition(":")
    return getattr(import_module(module), model)


def recipe_help(recipe: str) -> Any:
    """`--recipe-help`: every key of the verb's recipe ("module:Model") with type, default and meaning, read from its pydantic model."""

    def show(asked: bool) -> None:
        if not asked:
            return
        from flows.console import out, table_of

        model = recipe_model(recipe)
        out.print(table_of(f"keys of {model.__name__}", ["key", "type", "default", "meaning"], list(_keys(model))))
        raise typer.Exit()

    return Annotated[bool, typer.Option("--recipe-help", callback=show, is_eager=True, help="List the recipe's keys with types, defaults and meanings.")]


def _keys(model: Any, prefix: str = "") -> Iterator[Iterable[str]]:
    from pydantic import BaseModel
    from pydantic_core import PydanticUndefined

    for name, entry in model.model_fields.items():
        kind = entry.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
            continue
        made = entry.default_factory() if entry.default_factory else entry.default
        label = kind.__name__ if isinstance(kind, type) else re.sub(r"\b(typing|collections\.abc|[a-z_]+\.[a-z_.]+)\.", "", str(kind))
        yield f"{prefix}{name}", label, "required" if made is PydanticUndefined else str(made), entry.description or ""
