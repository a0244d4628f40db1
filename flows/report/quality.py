"""The part of the report about quality: how much text lies in each bucket, and whether the classifiers' scores mean what they say."""

import json
from pathlib import Path
from typing import Any

import fsspec
from markupsafe import Markup

from flows.report import charts
from pipelines.dataset import Dataset


def quality(folder: Path) -> dict[str, Any] | None:
    """RUN/bucketed, and RUN/classifier where the run trained one; None without buckets."""
    place = str(folder / "bucketed")
    if not Dataset.exists(place):
        return None
    dataset = Dataset.open(place)
    sizes = [int(dataset.counters[f"bytes.{number}"]) for number in range(dataset.meta["config"]["buckets"])]
    total = max(1, sum(sizes))
    levels = dataset.meta["config"]["levels"]
    counts = {name: int(dataset.counters.get(f"levels.{name}", 0)) for name in levels}
    trained = str(folder / "classifier")
    return {
        "documents": dataset.rows,
        "members": [member["name"] for member in dataset.meta["config"]["classifiers"]],
        "combine": dataset.meta["config"]["combine"],
        "chart": charts.histogram([{"label": str(number), "value": 100 * size / total} for number, size in enumerate(sizes)], x="bucket", y="% of text"),
        "levels": [{"level": name, "documents": count, "share": count / max(1, dataset.rows)} for name, count in counts.items()],
        "calibration": calibration(trained) if Dataset.exists(trained) else None,
    }


def calibration(classifier: str) -> dict[str, Any]:
    """What `train-classifier` measured on documents it had not trained on: AUC a classifier, and score against observed share of good documents."""
    with fsspec.open(f"{classifier.rstrip('/')}/files/calibration.json", "rt", encoding="utf-8") as file:
        measured = json.load(file)
    points = [
        {"series": name, "score": entry["score"], "good": entry["good"], "documents": entry["documents"]}
        for name, facts in measured["classifiers"].items()
        for entry in facts["reliability"]
    ]
    rows = [{"name": name, "auc": facts["auc"]} for name, facts in measured["classifiers"].items()]
    return {"chart": charts.reliability(points), "rows": rows, "documents": measured["documents"], "good": measured["good"]}


def calibration_page(classifier: str) -> str:
    """The calibration plot alone, as an HTML page that opens offline."""
    facts = calibration(classifier)
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    rows = Markup("").join(Markup("<tr><td>{}</td><td class='n'>{:.4f}</td></tr>").format(row["name"], row["auc"]) for row in facts["rows"])
    note = f"{facts['documents']:,} held-out documents, {facts['good']:,} good. A calibrated classifier lies on the line; the ensemble's score is a rank."
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Calibration</title><style>{style}</style></head><body><main><h1>Calibration</h1><p>{note}</p>"
        f"<div class='chart'>{facts['chart']}</div><table><tr><th>classifier</th><th class='n'>held-out AUC</th></tr>{rows}</table></main></body></html>"
    )
