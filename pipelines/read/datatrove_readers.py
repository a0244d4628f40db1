"""datatrove's own readers as the input of a recipe, so that what a team already has goes on working.

A recipe names a class of `datatrove.pipeline.readers` that reads files, or one of the team's own by its dotted path, and its arguments; its documents
become records like any others. What the reader would pass over in silence (captures it takes no page from), with a word in its log (documents without
text), or die of (a file that breaks) is a row with a reason.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from filters.datatrove_filters import find_class
from pipelines.read.record import MAX_BODY, Record, identify
from pipelines.read.tables import row_record


def check(name: str, params: Mapping[str, Any]) -> None:
    """Build the reader once, to see that it can be.

    Raises:
        ValueError: datatrove has no such reader of files, it refuses the arguments, or it needs a package that is absent.
    """
    _build(name, params, ".")


def read_documents(name: str, params: Mapping[str, Any], uri: str, html: bool = False, max_body: int = MAX_BODY) -> Iterator[Record]:
    """The documents of one file, in the reader's order; `html`: their text is a page still to be extracted (WarcReader's is)."""
    folder, _, leaf = uri.rpartition("/")
    reader = _build(name, params, folder or ".")
    losses = _Losses(reader)
    number = 0
    try:
        with losses.heard():
            for document in reader.read_file(leaf):
                for loss in losses.take():
                    yield _row(leaf, number).rejected(*loss)
                    number += 1
                about = {key: value for key, value in document.metadata.items() if isinstance(value, str | int | float)}
                content = {"html" if html else "text": document.text}
                yield row_record(_row(leaf, number), {**about, "id": document.id, **content}, max_body)
                number += 1
    except Exception as error:  # whatever the reader and its libraries raise: the documents before are kept, and the loss is told
        losses.found.append(("broken", f"datatrove's {name}: {type(error).__name__}: {error}"))
    for loss in losses.take():
        yield _row(leaf, number).rejected(*loss)
        number += 1


def _build(name: str, params: Mapping[str, Any], folder: str) -> Any:
    from datatrove.pipeline.readers.base import BaseDiskReader

    cls = find_class(name, "datatrove.pipeline.readers", BaseDiskReader, "reader of files")
    if taken := sorted({"data_folder", "paths_file", "limit", "skip"} & params.keys()):
        raise ValueError(f"datatrove's {name}: no {taken[0]} here: the files are the command's inputs, and a part is read whole")
    try:
        return cls(data_folder=folder, **json.loads(json.dumps(params)))
    except (TypeError, ImportError) as error:
        raise ValueError(f"datatrove's {name}: {error}") from None


class _Losses:
    """What a reader drops: documents without text, as it makes them; captures, as WarcReader judges them; anything else as it warns of it in its log."""

    def __init__(self, reader: Any):
        self.found: list[tuple[str, str]] = []
        self._make = reader.get_document_from_dict
        reader.get_document_from_dict = self._document

    def _document(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Any:
        document = self._make(data, source_file, id_in_file)
        if document is None:
            self.found.append(("empty", f"datatrove read no text in {source_file}/{id_in_file}"))
        return document

    @contextmanager
    def heard(self) -> Iterator[None]:
        from datatrove.pipeline.readers import warc as theirs
        from datatrove.utils.logging import logger

        process = theirs.process_record

        def hear(message: Any) -> None:
            text = message.record["message"]
            if not text.startswith("Found document without text"):
                self.found.append(("broken", text))

        def judged(record: Any) -> Any:
            page = process(record)
            if page is None and record.rec_type not in ("warcinfo", "request", "metadata"):
                self.found.append(("passed_over", f"datatrove takes no page from {record.rec_type} {record.rec_headers.get_header('WARC-Target-URI')}"))
            return page

        number = logger.add(hear, level="WARNING", filter="datatrove.pipeline.readers")
        try:
            with patch.object(theirs, "process_record", judged):
                yield
        finally:
            logger.remove(number)

    def take(self) -> list[tuple[str, str]]:
        taken, self.found = self.found, []
        return taken


def _row(source: str, number: int) -> Record:
    return Record(source, number, 1, id=identify("", source, number))
