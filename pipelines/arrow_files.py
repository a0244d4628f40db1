"""Arrow files: what stages hand to one another beside rows, small and whole."""

from typing import Any

import pyarrow as pa

from pipelines.part_output import PartOutput
from pipelines.storage import open_input


def write_arrow(output: PartOutput, name: str, columns: dict[str, Any] | pa.Table) -> None:
    """Write a table, or arrays of one length by name, as `files/<name>` of a part."""
    table = pa.table(columns) if isinstance(columns, dict) else columns
    with output.file(name) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), table.schema) as writer:
        writer.write_table(table)


def read_arrow(uri: str) -> pa.Table:
    with open_input(uri) as file:
        return pa.ipc.open_file(pa.PythonFile(file, mode="r")).read_all()
