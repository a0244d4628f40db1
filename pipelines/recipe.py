"""Recipes: every runnable configuration is a YAML file validated by a pydantic model.

Unknown keys are errors that name the key and its nearest match: a misspelt threshold that is silently ignored costs a
training run. Models are frozen, so a recipe's digest is its identity.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import UserError


class Recipe(BaseModel):
    """The parent of every configuration model: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


T = TypeVar("T", bound=Recipe)


def load_recipe(model: type[T], source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> T:
    """Read, override and validate a recipe.

    `source` is a path, the bare name of a recipe that ships with Gristmill (`recipes/<name>.yaml`), a mapping, or None
    for the defaults. `overrides` are `key=value` strings; keys are dotted, values are YAML (`optimizer.lr=3e-3`).

    Raises:
        UserError: the file is missing or no mapping, a key is unknown, or a value does not validate.
    """
    values = dict(source) if isinstance(source, Mapping) else {} if source is None else _read(source)
    label = str(source) if isinstance(source, str | Path) else model.__name__
    for override in overrides:
        _set(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{label}: {_explain(model, error)}") from None


def recipe_names() -> list[str]:
    """The names of the recipes that ship with Gristmill."""
    return sorted(entry.name.removesuffix(".yaml") for entry in resources.files("recipes").iterdir() if entry.name.endswith(".yaml"))


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a model or of any JSON-able value."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif path.suffix not in (".yaml", ".yml") and len(path.parts) == 1 and str(path) in recipe_names():
        text = resources.files("recipes").joinpath(f"{path}.yaml").read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(str(path), recipe_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; recipes that ship: {', '.join(recipe_names())}"
        raise UserError(f"no recipe {source}{hint}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{source}: a recipe is a mapping of keys to values, this is a {type(values).__name__}")
    return values


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form key=value")
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        else:
            values[parent] = dict(values[parent])
        values = values[parent]
    try:
        values[last] = _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: {' '.join(str(error).split())}") from None


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3e-3 as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first problem of a validation error, as one line."""
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")  # a misspelt key explains the one that is missing
    where = ".".join(str(step) for step in first["loc"]) or "recipe"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), sorted(_keys(model)), n=1)
        line = f"unknown key {where}" + (f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(sorted(model.model_fields))}")
    else:
        line = f"{where}: {' '.join(first['msg'].split())}"
    more = len(problems) - 1
    return line + (f" (and {more} more)" if more else "")


def _keys(model: type[BaseModel], seen: frozenset[type] = frozenset()) -> set[str]:
    """All field names of a model and of the models nested in it (once: a model may hold itself)."""
    keys = set(model.model_fields)
    seen |= {model}
    pending: list[Any] = [field.annotation for field in model.model_fields.values()]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
            keys |= _keys(annotation, seen)
        pending.extend(get_args(annotation))
    return keys
