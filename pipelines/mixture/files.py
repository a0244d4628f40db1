"""Mixtures as YAML files: paths seen from the file's folder, mixtures inside mixtures read in."""

import os
from pathlib import Path

import yaml
from pydantic import ValidationError

from pipelines.atomic import write_file
from pipelines.errors import UserError
from pipelines.mixture.recipe import Mixture, Source
from pipelines.recipe import load_recipe


def load_mixture(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Mixture:
    """Read a mixture; relative dataset paths become absolute, seen from the file's folder, and `mixture: file` becomes its sources.

    Of a mixture inside a mixture only the sources and their weights count.

    Raises:
        UserError: a file is missing, does not validate, or holds itself.
    """
    return _load(path, overrides, ())


def _load(path: str | Path, overrides: tuple[str, ...] | list[str], above: tuple[Path, ...]) -> Mixture:
    here = Path(path).resolve()
    if here in above:
        raise UserError(f"{path}: the mixture holds itself ({' -> '.join(p.name for p in (*above, here))})")
    mixture = load_recipe(Mixture, path, overrides)
    sources = tuple(_read_in(source, here.parent, (*above, here)) for source in mixture.sources)
    try:
        return Mixture.model_validate({**mixture.model_dump(), "sources": [source.model_dump() for source in sources]})
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors(include_url=False)[0]['msg']}") from None


def _read_in(source: Source, folder: Path, above: tuple[Path, ...]) -> Source:
    if source.mixture:
        inner = _load(folder / source.mixture, (), above)
        return source.model_copy(update={"mixture": None, "sources": inner.sources})
    if source.sources:
        return source.model_copy(update={"sources": tuple(_read_in(inner, folder, above) for inner in source.sources)})
    remote = "://" in source.dataset or os.path.isabs(source.dataset)
    return source if remote else source.model_copy(update={"dataset": os.path.normpath(folder / source.dataset)})


def save_mixture(mixture: Mixture, path: str | Path) -> Path:
    """Write a mixture as YAML by rename; dataset paths (absolute, or seen from the working folder) become relative to the file's folder."""
    path = Path(path)
    values = mixture.model_dump(mode="json", exclude_defaults=True)
    pending = list(values["sources"])
    while pending:
        source = pending.pop()
        pending += source.get("sources", [])
        if "dataset" in source and "://" not in source["dataset"]:
            source["dataset"] = os.path.relpath(Path(source["dataset"]).resolve(), path.resolve().parent)
    write_file(str(path), yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return path
