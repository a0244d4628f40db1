"""Imported once, where workers are forked from: what each would do first (load compiled kernels, the character table, the language model) is done here."""

from contextlib import suppress

from pipelines.curate.judge import judge
from pipelines.curate.recipe import CurateRecipe
from pipelines.curate.run import rows_of
from pipelines.read import Record

_PAGE = b"<html><head><title>A page</title></head><body><h1>A page</h1><p>Its few words, from the first of them to the last one.</p></body></html>"

with suppress(Exception):  # whatever is wrong is told by the worker that meets it
    judge(list(rows_of([Record("a page", body=_PAGE, content_type="text/html")], CurateRecipe(), ())), CurateRecipe())
