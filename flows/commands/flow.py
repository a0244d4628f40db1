"""`gristmill flow run|deploy`: the flows by name."""

import typer


def add_to(app: typer.Typer) -> None:
    return None
