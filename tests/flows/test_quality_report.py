"""Buckets and calibration reach the report and the classifier's own page."""

import json

from row_datasets import dataset

from flows.cli import run
from flows.report.quality import calibration, quality
from pipelines.dataset import Dataset


def test_a_trained_and_bucketed_run_is_shown(tmp_path, capsys):
    good = [{"id": f"g{n}", "text": f"theorem proof energy {n % 7} of the planet"} for n in range(60)]
    other = [{"id": f"o{n}", "text": f"click buy sale {n % 5} now free offer"} for n in range(60)]
    places = [dataset(tmp_path / name, rows).uri for name, rows in (("good", good), ("other", other))]
    classifier, bucketed = str(tmp_path / "classifier"), str(tmp_path / "bucketed")
    settings = ["dimensions=4", "buckets=100", "held_out=0.3", "epochs=25"]
    assert quality(tmp_path) is None
    assert run(["train-classifier", "--good", places[0], "--other", places[1], "--out", classifier, "--quiet", *settings]) == 0
    page = (tmp_path / "classifier/calibration.html").read_text(encoding="utf-8")
    assert "<svg" in page and "fasttext" in page and "<script" not in page
    measured = json.loads((tmp_path / "classifier/files/calibration.json").read_text(encoding="utf-8"))
    assert (
        sum(entry["documents"] for entry in measured["classifiers"]["fasttext"]["reliability"]) == measured["documents"] == calibration(classifier)["documents"]
    )
    members = json.dumps([{"name": "words", "path": f"{classifier}/files/fasttext.bin"}])
    assert run(["bucket", *places, "--out", bucketed, "--workers", "0", "--quiet", f"classifiers={members}"]) == 0
    facts = quality(tmp_path)
    assert facts["documents"] == 120 == Dataset.open(bucketed).rows == sum(row["documents"] for row in facts["levels"])
    assert facts["members"] == ["words"] and "<svg" in facts["chart"] and facts["calibration"]["rows"][0]["name"] == "fasttext"
