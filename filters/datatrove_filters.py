"""datatrove's own filters as steps of a recipe, so that what a team already has goes on working.

A step names a class of `datatrove.pipeline.filters`, or one of the team's own by its dotted path, and its arguments. Its drops are recorded like ours, with the
reason "datatrove.<class>" and datatrove's own word for it as detail; what a filter writes into the text (C4QualityFilter drops lines) is what the
next one sees and what is kept. Filters run in the order in which they are named, on one document at a time, as datatrove runs them: they are the slow lane
beside the columnar families. Where a filter draws lots, a document's lot depends on the seed and the document alone.
"""

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import xxhash


class Verdict(NamedTuple):
    """`reason` and `detail` are "" where the filter keeps the document; `text` is what it left of it."""

    reason: str
    detail: str
    text: str


def load(name: str, params: Mapping[str, Any]) -> Any:
    """An instance of the filter class `name`, built once a process.

    Raises:
        ValueError: there is no such filter, or it refuses the arguments.
    """
    return _load(name, json.dumps(params, sort_keys=True))


def judge(step: Any, rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """What the filter makes of each row, in order.

    Rows have `id`, `text`, `url` and `language`; the filter sees them as datatrove's readers would give them.

    Raises:
        ValueError: the filter fails, or needs a package that is not installed (its word splitters do).
    """
    from datatrove.data import Document

    name, verdicts = type(step).__name__, []
    waiting = iter(rows)
    while batch := list(islice(waiting, step.batch_size)):
        _draw_for(step, batch[0]["id"])
        documents = [Document(row["text"], row["id"], metadata={"url": row.get("url") or "", "language": row.get("language") or ""}) for row in batch]
        try:
            with _any_fasttext():
                results = step.filter_batch(documents)
        except ImportError as error:
            raise ValueError(f"datatrove's {name}: {error}") from None
        except Exception as error:  # whatever a filter may raise: there is no verdict to go on with
            raise ValueError(f"datatrove's {name} fails on document {batch[0]['id']}: {type(error).__name__}: {error}") from error
        for document, result in zip(documents, results, strict=True):
            kept, word = result if isinstance(result, tuple) else (result, "")
            verdicts.append(Verdict("" if kept else f"datatrove.{name}", "" if kept else str(word or ""), document.text))
    return verdicts


def find_class(name: str, rooms: str, parent: type, what: str) -> type:
    """The class `name` of datatrove's package `rooms`, or at a dotted path of one's own, if it is a `parent`.

    Raises:
        ValueError: there is none; the message lists datatrove's own.
    """
    known = importlib.import_module(rooms)
    module, _, leaf = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module) if module else known, leaf, None)
    except ImportError as error:
        raise ValueError(f"no {what} {name}: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, parent)):
        names = sorted(other for other, value in vars(known).items() if isinstance(value, type) and issubclass(value, parent))
        raise ValueError(f"datatrove has no {what} {name}; known: {', '.join(names)}, or your own as module.Class")
    return cls


@lru_cache(maxsize=32)
def _load(name: str, params: str) -> Any:
    from datatrove.pipeline.filters.base_filter import BaseFilter

    cls, arguments = find_class(name, "datatrove.pipeline.filters", BaseFilter, "filter"), json.loads(params)
    if cls.__name__ == "LambdaFilter":
        raise ValueError("datatrove's LambdaFilter takes a Python function, which a recipe cannot hold; name a filter class of your own as module.Class")
    try:
        with _any_fasttext():
            step = cls(**arguments)
    except Exception as error:  # wrong arguments, absent packages, lists that cannot be fetched
        raise ValueError(f"datatrove's {name}: {error}") from None
    step.gristmill_seed = arguments.get("seed") or 0
    return step


@contextmanager
def _any_fasttext() -> Iterator[None]:
    """datatrove asks for fasttext under the name of one of its distributions; ours has another, the same module and interface."""
    from datatrove.utils import _import_utils as imports

    asked = imports._is_distribution_available
    with patch.object(imports, "_is_distribution_available", lambda name: name == "fasttext-numpy2-wheel" or asked(name)):
        yield


def _draw_for(step: Any, document_id: str) -> None:
    """datatrove draws from one generator a task (`uniform` of SamplerFilter, C4BadWordsFilter), so its lots depend on how documents are spread."""
    if hasattr(step, "uniform"):
        step.uniform = np.random.default_rng([step.gristmill_seed, xxhash.xxh3_64_intdigest(document_id)]).uniform
