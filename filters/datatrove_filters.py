"""datatrove's own filters as steps of a recipe, so that what a team already has goes on working.

A step names a class of `datatrove.pipeline.filters` and its arguments. Its drops are recorded like ours, with the reason
"datatrove.<class>" and datatrove's own word for it as detail. Filters run in the order in which they are named, on one
document at a time, as datatrove runs them: they are the slow lane beside the columnar families.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any


def load(name: str, params: Mapping[str, Any]) -> Any:
    """An instance of the filter class `name`, built once a process.

    Raises:
        ValueError: datatrove has no such filter, or it refuses the arguments.
    """
    return _load(name, json.dumps(params, sort_keys=True))


@lru_cache(maxsize=32)
def _load(name: str, params: str) -> Any:
    import datatrove.pipeline.filters as known
    from datatrove.pipeline.filters.base_filter import BaseFilter

    cls = getattr(known, name, None)
    if not (isinstance(cls, type) and issubclass(cls, BaseFilter)):
        names = sorted(other for other in vars(known) if other.endswith("Filter"))
        raise ValueError(f"datatrove has no filter {name}; known: {', '.join(names)}")
    try:
        return cls(**json.loads(params))
    except (TypeError, ImportError) as error:
        raise ValueError(f"datatrove's {name}: {error}") from None


def judge(step: Any, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """("", "") for every row the filter keeps, else (reason, detail).

    Rows have `id`, `text`, `url` and `language`; the filter sees them as datatrove's readers would give them.

    Raises:
        ValueError: the filter needs a package that is not installed (its word splitters do).
    """
    from datatrove.data import Document

    documents = [
        Document(text=row["text"], id=row["id"], metadata={"url": row.get("url") or "", "language": row.get("language") or ""}) for row in rows
    ]
    try:
        verdicts = step.filter_batch(documents)
    except ImportError as error:
        raise ValueError(f"datatrove's {type(step).__name__}: {error}") from None
    decisions = []
    for verdict in verdicts:
        kept, word = verdict if isinstance(verdict, tuple) else (verdict, "")
        decisions.append(("", "") if kept else (f"datatrove.{type(step).__name__}", str(word or "")))
    return decisions
