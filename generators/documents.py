"""Synthetic documents: a web document's columns, and where the text came from instead of a page.

`generator` names the writer (model@revision, or the task code), `task` and `prompt_digest` what it was asked, `parents` the ids of
the rows it came from, `verified` that a checker accepted it, `sampling` how it was drawn: enough to make any row again.
"""
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from generators.tasks import TASKS, Problem, Task
from pipelines.dataset import DOCUMENT_SCHEMA
from pipelines.errors import UserError

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SAMPLING = pa.struct([
    ("seed", pa.int64()),  # of the request's random stream; for problems, of the problem stream
    ("sample", pa.int64()),  # which of the samples of one prompt; for problems, the index in the stream
    ("temperature", pa.float32()),
    ("top_p", pa.float32()),
    ("top_k", pa.int32()),
    ("max_tokens", pa.int32()),
])
SYNTHETIC_SCHEMA = pa.schema([
    *DOCUMENT_SCHEMA,
    ("messages", MESSAGES),
    ("task", pa.string()),
    ("question", pa.string()),
    ("reasoning", pa.string()),
    ("answer", pa.string()),
    ("generator", pa.string()),
    ("prompt_digest", pa.string()),  # SHA-256 of the prompt's messages as JSON
    ("parents", pa.list_(pa.string())),
    ("verified", pa.bool_()),
    ("sampling", SAMPLING),
])
REJECTED_SCHEMA = pa.schema([*SYNTHETIC_SCHEMA, ("reason", pa.string()), ("detail", pa.string())])

LICENSE = "Apache-2.0"  # of our tasks and of reasoning-gym's


def table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table | None:
    """Rows as a table of the schema; None when there are none. Columns a row lacks are null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema) if rows else None


def text_digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def task_named(name: str, params: Mapping[str, Any] | None = None) -> Task:
    """A registered task at the given difficulty. UserError names what does not exist."""
    if name not in TASKS:
        raise UserError(f"no task {name!r}; there are {', '.join(TASKS)}")
    try:
        return TASKS[name].with_params(params or {})
    except ValueError as error:
        raise UserError(str(error)) from None


def problem_of(row: Mapping[str, Any]) -> Problem:
    """The problem a dataset row holds, ready to be checked against."""
    return Problem(row["task"], row["question"], row["reasoning"], row["answer"])
