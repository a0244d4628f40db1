"""The part of the report about models: loss curves, accuracy stage by stage, and what they wrote."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.report import charts

RUNS = {"pretrain": "Pretraining", "sft": "SFT", "continued": "Continued training", "rl": "RL"}
STAGES = ("untrained", *RUNS)
ANSWER_CHARACTERS = 1500
PROBLEMS, TEXT = "problems", "text"  # the suites' names in eval/<stage>.json


def curves(folder: Path) -> list[dict[str, Any]]:
    """A chart a training run: loss and held-out loss; for RL the rollouts' reward and accuracy."""
    drawn = []
    for name, title in RUNS.items():
        rows = metrics(folder / name)
        if not rows:
            continue
        if name == "rl":
            points = [{"step": row["step"], "series": series, "value": row[series]} for row in rows for series in ("reward", "accuracy") if series in row]
            drawn.append({"title": f"{title}: rollouts' reward and accuracy", "chart": charts.loss_curves(points, y="per response"), "note": None})
            continue
        points = [{"step": row["step"], "series": "training", "value": row["loss"]} for row in rows if "loss" in row]
        points += [{"step": row["step"], "series": f"held-out {source}", "value": value} for row in rows for source, value in row.get("validation", {}).items()]
        speed = sorted(row["tokens_per_second"] for row in rows)[len(rows) // 2]
        note = f"{len(rows):,} steps · {rows[-1]['tokens']:,} tokens with loss · median {speed:,.0f} a second"
        drawn.append({"title": title, "chart": charts.loss_curves(points, y="loss, nats a token"), "note": note})
    return drawn


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl that are whole."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def evaluations(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, figures) of every evaluation there is, in the order of training."""
    for stage in STAGES:
        path = folder / "eval" / f"{stage}.json"
        if path.is_file():
            yield stage, json.loads(path.read_text(encoding="utf-8"))


def accuracy(folder: Path) -> dict[str, Any] | None:
    """Accuracy per stage and task, and the held-out text's loss, as a chart and a table."""
    found = dict(evaluations(folder))
    asked = {stage: figures[PROBLEMS] for stage, figures in found.items() if PROBLEMS in figures}
    if not asked:
        return None
    tasks = list(dict.fromkeys(task for figures in asked.values() for task in figures["tasks"]))
    points = [
        {"stage": stage, "task": task, "accuracy": figures["tasks"][task]["accuracy"]}
        for stage, figures in asked.items()
        for task in tasks
        if task in figures["tasks"]
    ]
    rows = [
        {"task": task, "values": [figures.get(PROBLEMS, {}).get("tasks", {}).get(task, {}).get("accuracy") for figures in found.values()]} for task in tasks
    ]
    for label, key in (("all", "accuracy"), ("all, sampled", "sampled_accuracy")):
        values = [figures.get(PROBLEMS, {}).get(key) for figures in found.values()]
        if any(value is not None for value in values):
            rows.append({"task": label, "values": values})
    text = [
        {"task": label, "values": [figures.get(TEXT, {}).get(key) for figures in found.values()]}
        for key, label in (("nats_per_token", "held-out text, nats a token"), ("bits_per_byte", "held-out text, bits a byte"))
        if any(TEXT in figures for figures in found.values())
    ]
    last = list(asked.values())[-1]
    error = 100 * last["standard_error"]
    note = f"{last['count']:,} held-out problems, greedy decoding, one answer each. Standard error of the last column's total: {error:.1f} points."
    if "sampled_accuracy" in last:
        note += f" Sampled: the share of right answers at temperature 1, which is what RL optimises (±{100 * last['sampled_standard_error']:.1f})."
    return {"note": note, "chart": charts.accuracy_by_stage(points, list(asked)), "stages": list(found), "rows": rows, "text": text}


def samples(folder: Path) -> list[dict[str, Any]]:
    """Six answers of each stage, right and wrong, of as many tasks as there are."""
    shown = []
    for stage, figures in evaluations(folder):
        rows = figures.get(PROBLEMS, {}).get("samples", [])
        right, wrong = _spread([row for row in rows if row["ok"]]), _spread([row for row in rows if not row["ok"]])
        chosen = right[: max(3, 6 - len(wrong))] + wrong[: 6 - len(right[:3])]
        if chosen:
            shown.append({"stage": stage, "rows": [{**row, "response": row["response"].strip()[:ANSWER_CHARACTERS]} for row in chosen]})
    return shown


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in turns: the first of each task, the second of each, ..."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        turns.append((seen[row["task"]], row))
        seen[row["task"]] += 1
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])]


def headline(folder: Path) -> list[tuple[str, str]]:
    """Held-out loss and accuracy, first to last."""
    figures: list[tuple[str, str]] = []
    found = dict(evaluations(folder))
    losses = [(stage, entry[TEXT]["nats_per_token"]) for stage, entry in found.items() if TEXT in entry]
    if len(losses) > 1:
        low = next((value for stage, value in losses if stage == "pretrain"), losses[-1][1])
        figures.append((f"{losses[0][1]:.2f} → {low:.2f}", "held-out text loss (nats a token), before and after pretraining"))
    asked = {stage: found[stage][PROBLEMS]["accuracy"] for stage in ("pretrain", "sft", "rl") if PROBLEMS in found.get(stage, {})}
    if asked:
        rise = " → ".join(f"{100 * share:.0f}" for share in asked.values())
        figures.append((f"{rise} %", f"held-out problems right after {', '.join(asked)}"))
    return figures
