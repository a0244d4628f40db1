"""Verbs that make data: problems, generate."""

import typer


def add_to(app: typer.Typer) -> None:
    return None
