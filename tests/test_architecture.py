"""The house stands: packages import only from the floors below, and rooms have names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"kernels": 1, "model": 2, "filters": 2, "pipelines": 3, "generators": 4, "training": 5, "flows": 6}
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "base"}


def modules():
    return sorted(path for package in FLOORS for path in (ROOT / package).rglob("*.py"))


def imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module


@pytest.mark.parametrize("package", FLOORS)
def test_imports_run_down_the_house(package):
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        if path.relative_to(ROOT).parts[0] == package
        for line, name in imported(path)
        if (other := name.split(".")[0]) in FLOORS and other != package and FLOORS[other] >= FLOORS[package]
    ]
    assert not upward


def test_only_flows_know_prefect():
    assert not [str(path) for path in modules() if path.relative_to(ROOT).parts[0] != "flows" for _, name in imported(path) if name.split(".")[0] == "prefect"]


def test_no_room_is_named_for_nothing():
    assert not [str(path.relative_to(ROOT)) for path in modules() if NAMELESS & {path.stem, *path.relative_to(ROOT).parts[:-1]}]
