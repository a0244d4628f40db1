"""Fill the page: facts in, one HTML file out that opens offline.

Page texts are hostile by assumption: autoescaping is on for everything, links are shown as text, and the page's own
Content-Security-Policy forbids scripts and every request.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from flows.console import figure
from pipelines.atomic import write_file


def render(facts: Mapping[str, Any]) -> str:
    """The HTML of a report about `facts` (see `flows.report.facts.collect`)."""
    environment = Environment(loader=PackageLoader("flows.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(figure=figure, share=share, duration=duration, size=size)
    style = environment.loader.get_source(environment, "page.css")[0]
    return environment.get_template("page.html").render(**facts, style=style)


def write_report(facts: Mapping[str, Any], path: str | Path) -> Path:
    """Render and write the file, whole or not at all."""
    path = Path(path)
    write_file(str(path.absolute()), render(facts).encode("utf-8", "replace"))
    return path


def share(value: float | None, digits: int = 1) -> str:
    """A fraction as percent."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def size(count: float | None) -> str:
    """Bytes, in decimal units."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
