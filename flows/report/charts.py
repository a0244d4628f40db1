"""Curves and histograms as static SVG, drawn by Vega through altair: no script in the page, nothing to load.

Vega writes colours into the SVG; we hand it stand-in colours and put CSS variables in their place, so that one drawing
follows the page's light and dark themes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup

# stand-in -> CSS variable of page.css
VARIABLES = ("--ink", "--soft", "--rule", "--a", "--b", "--c", "--d", "--e", "--f")
STAND_INS = {f"#{10101 * number:06d}": f"var({variable})" for number, variable in enumerate(VARIABLES, 1)}
INK, SOFT, RULE, *SERIES = STAND_INS
MAX_POINTS = 400  # of one line: more than the pixels it is drawn on


def loss_curves(points: Sequence[Mapping[str, Any]], *, y: str, width: int = 360, height: int = 200) -> Markup:
    """Lines over steps. `points`: mappings with `step`, `value` and `series`; a series of few points gets dots too."""
    series = list(dict.fromkeys(point["series"] for point in points))
    thin: list[Mapping[str, Any]] = []
    for name in series:
        line = [point for point in points if point["series"] == name]
        stride = -(-len(line) // MAX_POINTS)
        thin += line[::stride] if (len(line) - 1) % stride == 0 else [*line[::stride], line[-1]]
    colour = alt.Color(
        "series:N",
        scale=alt.Scale(domain=series, range=SERIES[: len(series)]),
        legend=alt.Legend(title=None, orient="top", symbolType="stroke", columns=2 if len(series) > 3 else 0) if len(series) > 1 else None,
    )
    table = alt.Data(values=[dict(point) for point in thin])
    x_axis = alt.X("step:Q", title="step", axis=alt.Axis(grid=False, tickCount=6))
    y_axis = alt.Y("value:Q", title=y, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5))
    lines = alt.Chart(table).mark_line(strokeWidth=1.6, interpolate="linear").encode(x=x_axis, y=y_axis, color=colour)
    few = [name for name in series if sum(point["series"] == name for point in thin) <= 40]
    dots = (
        alt.Chart(alt.Data(values=[dict(point) for point in thin if point["series"] in few]))
        .mark_circle(size=26, opacity=1)
        .encode(x=x_axis, y=y_axis, color=colour)
    )
    return _svg(lines + dots if few else lines, width, height)


def accuracy_by_stage(rows: Sequence[Mapping[str, Any]], stages: Sequence[str], *, width: int = 560, height: int = 240) -> Markup:
    """A line a task over the training stages. `rows`: mappings with `stage`, `task`, `accuracy` in [0, 1]."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if len(tasks) > len(SERIES):  # more lines than colours: the table below tells them apart
        colour = alt.value(SOFT)
    else:
        colour = alt.Color(
            "task:N", scale=alt.Scale(domain=tasks, range=SERIES[: len(tasks)]), legend=alt.Legend(title=None, orient="top", columns=3 if len(tasks) > 4 else 0)
        )
    chart = (
        alt.Chart(alt.Data(values=[dict(row) for row in rows]))
        .mark_line(point=alt.OverlayMarkDef(size=34, filled=True), strokeWidth=1.6)
        .encode(
            x=alt.X("stage:N", sort=list(stages), title=None, axis=alt.Axis(labelAngle=0, grid=False)),
            y=alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5)),
            detail="task:N",
            color=colour,
        )
    )
    return _svg(chart, width, height)


def histogram(rows: Sequence[Mapping[str, Any]], *, x: str, y: str, width: int = 360, height: int = 160) -> Markup:
    """Bars over ordered classes. `rows`: mappings with `label` and `value`, in order."""
    chart = (
        alt.Chart(alt.Data(values=[dict(row) for row in rows]))
        .mark_bar(color=SERIES[0], size=max(6, min(34, width // max(1, 2 * len(rows)))))
        .encode(
            x=alt.X("label:N", sort=[row["label"] for row in rows], title=x, axis=alt.Axis(labelAngle=0, grid=False, ticks=False)),
            y=alt.Y("value:Q", title=y, axis=alt.Axis(tickCount=4)),
        )
    )
    return _svg(chart, width, height)


def reliability(points: Sequence[Mapping[str, Any]], *, width: int = 360, height: int = 240) -> Markup:
    """Score against observed share, a line a series, over the diagonal. `points`: mappings with `series`, `score` and `good` in [0, 1], and `documents`."""
    series = list(dict.fromkeys(point["series"] for point in points))
    colour = alt.Color("series:N", scale=alt.Scale(domain=series, range=SERIES[: len(series)]), legend=alt.Legend(title=None, orient="top"))
    x_axis = alt.X("score:Q", title="score", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(grid=False, tickCount=5))
    y_axis = alt.Y("good:Q", title="observed share of good documents", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5))
    diagonal = alt.Chart(alt.Data(values=[{"score": 0, "good": 0}, {"score": 1, "good": 1}])).mark_line(color=SOFT, strokeDash=[4, 4], strokeWidth=1)
    dots = alt.OverlayMarkDef(size=34, filled=True)
    lines = alt.Chart(alt.Data(values=[dict(point) for point in points])).mark_line(point=dots, strokeWidth=1.6)
    return _svg(diagonal.encode(x=x_axis, y=y_axis) + lines.encode(x=x_axis, y=y_axis, color=colour), width, height)


def _svg(chart: alt.TopLevelMixin, width: int, height: int) -> Markup:
    styled = (
        chart.properties(width=width, height=height, background="transparent", padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=SOFT,
            titleColor=SOFT,
            domainColor=RULE,
            tickColor=RULE,
            gridColor=RULE,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            domain=False,
        )
        .configure_legend(labelColor=INK, labelFontSize=12)
    )
    svg = vl_convert.vegalite_to_svg(styled.to_json())
    for stand_in, variable in STAND_INS.items():
        svg = svg.replace(f'"{stand_in}"', f'"{variable}"')
    return Markup(svg)
