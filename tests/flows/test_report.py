"""The report shows what the run folder holds, whole or in part, whatever hostile pages say."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from flows.cli import run
from flows.report import charts, facts, learning, lineage_graph
from flows.report.render import duration, render, share, size, write_report

HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)> "quoted" & \u202e right-to-left ' + "w" * 300


class Parser(HTMLParser):
    """Collects ids, tags and text; fails on unbalanced elements."""

    VOID = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.ids, self.tags, self.text, self.open = [], set(), "", []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.ids += [value for key, value in attributes if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(html):
    parser = Parser()
    parser.feed(html)
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def everything():
    """Facts for every section of the page, with hostile strings wherever a page or a model has a say."""
    points = [
        {"step": step, "series": name, "value": 9 - step / 100 + shift}
        for name, shift in (("training", 0), ("held-out text", 0.4))
        for step in range(0, 600, 7)
    ]
    stages, tasks = ["untrained", "pretrain", "sft", "continued", "rl"], ["addition", "comparison", "counting"]
    rows = [{"stage": stage, "task": task, "accuracy": 0.2 * at} for at, stage in enumerate(stages) for task in tasks]
    node = lineage_graph.Node
    return {
        "title": "1,013 pages to a model that reasons",
        "lead": HOSTILE,
        "version": "0.1.0",
        "headline": [{"figure": "1,013", "label": "records read"}, {"figure": "4 → 60 → 72 %", "label": "held-out problems right"}] * 4,
        "funnel": [
            {
                "stage": "curate",
                "rows_in": 1013,
                "kept": 162,
                "reasons": [
                    {
                        "reason": "gopher_quality.words",
                        "count": 500,
                        "share": 0.5,
                        "example": {"title": HOSTILE, "url": "javascript:alert(1)//" + "a" * 200, "detail": "words 3", "text": HOSTILE},
                    },
                    {"reason": "extract.no_text", "count": 351, "share": 0.3, "example": None},
                ],
            },
            {"stage": "dedup", "rows_in": 162, "kept": 155, "reasons": []},
        ],
        "languages": [{"language": "German", "documents": 77, "share": 0.475}, {"language": HOSTILE[:30], "documents": 13, "share": 0.08}],
        "duplicates": {
            "removed": 7,
            "clusters": 5,
            "kinds": [{"reason": "exact.url", "count": 4}, {"reason": "minhash.near_duplicate", "count": 3}],
            "chart": charts.histogram([{"label": "2", "value": 4}, {"label": "3", "value": 1}], x="copies", y="clusters"),
            "examples": [{"kept": HOSTILE, "text": HOSTILE, "copies": [{"url": HOSTILE, "detail": "exact.url"}]}],
        },
        "quality": {
            "documents": 1000, "members": ["words", HOSTILE], "combine": "mean",
            "chart": charts.histogram([{"label": str(number), "value": 5.0} for number in range(20)], x="bucket", y="% of text"),
            "levels": [{"level": "low", "documents": 350, "share": 0.35}],
            "calibration": {
                "chart": charts.reliability([{"series": "words", "score": at / 10, "good": at / 11, "documents": 9} for at in range(10)]),
                "rows": [{"name": "words", "auc": 0.9}], "documents": 90, "good": 40,
            },
        },
        "mixtures": [
            {
                "name": "shards-1",
                "tokens": 800_000,
                "steps": 195,
                "sources": [{"name": "text", "documents": 148, "available": 210_000, "asked": 0.5, "achieved": 0.502, "tokens": 401_000, "epochs": 1.9}],
            }
        ],
        "curves": [{"title": title, "chart": charts.loss_curves(points, y="loss"), "note": "195 steps"} for title in ("Pretraining", "SFT", "Continued", "RL")],
        "accuracy": {
            "note": "150 problems",
            "chart": charts.accuracy_by_stage(rows, stages),
            "stages": stages,
            "rows": [{"task": task, "values": [None, 0.0, 0.5, 0.6, 0.7]} for task in tasks],
            "text": [{"task": "nats a token", "values": [7.6, 4.1, 4.3, 4.0, 4.0]}],
        },
        "leaks": {
            "note": "13-grams",
            "rows": [{"heldout": "text", "size": 7, "against": "training text", "documents": 148, "overlapping": 0, "action": "dropped"}],
        },
        "generation": {
            "written": 600,
            "verified": 240,
            "accepted": 210,
            "share": 0.4,
            "most": 120,
            "tasks": [{"task": "addition", "accepted": 60, "written": 120, "share": 0.5}],
            "reasons": [{"reason": "answer.wrong", "count": 300}, {"reason": "format.truncated", "count": 90}],
        },
        "samples": [
            {
                "stage": "rl",
                "rows": [
                    {"task": "addition", "question": "What is 2 + 2?", "response": HOSTILE, "ok": False, "reason": "answer.wrong", "answer": "4"},
                    {"task": "addition", "question": "What is 1 + 2?", "response": "<think>\n1+2+0=03\n</think>\n3", "ok": True, "reason": "ok", "answer": "3"},
                ],
            }
        ],
        "timings": {"note": "Wall time.", "longest": 300.0, "rows": [{"step": "pretrain", "seconds": 300.0, "peak_bytes": 2.1e9, "sittings": 1}]},
        "lineage": lineage_graph.draw(
            [
                node("crawl", "data", "4 files", ""),
                node("curated", "data", "162 <b>", "a" * 64, ("crawl",)),
                node("pretrain", "model", "195 steps", "b" * 64, ("curated",)),
            ]
        ),
        "reproduce": {"command": "gristmill demo --out runs/again --seed 0 --crawl '" + HOSTILE + "'", "facts": [("seed", 0), ("digest of text", "c" * 64)]},
    }


SECTIONS = ["funnel", "languages", "duplicates", "quality", "mixture", "training", "accuracy", "generation", "samples", "timings", "lineage", "reproduce"]


def test_the_page_has_its_parts_and_no_script(everything):
    html = render(everything)
    page = parse(html)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS and "headline" in page.ids
    assert not page.tags & {"script", "img", "iframe", "object", "form"}
    assert "default-src 'none'" in html
    assert not re.search(r"""(?:src|href)=["'](?!data:,|#)""", html)
    assert page.text.count('<script>document.title="owned"</script>') >= 8  # shown as text, where the pages said it
    assert len(re.findall(r"<svg", html)) == 9
    assert not set(re.findall(r'"(#0[1-7]0[1-7]0[1-7])"', html)), "a stand-in colour was left in a chart"


def test_charts_follow_the_theme():
    svg = str(charts.loss_curves([{"step": 0, "series": "a", "value": 1.0}, {"step": 1, "series": "a", "value": 0.5}], y="loss"))
    assert "var(--a)" in svg and "var(--soft)" in svg and svg.startswith("<svg")


def test_long_lines_are_thinned_but_keep_their_ends():
    points = [{"step": step, "series": "a", "value": float(step)} for step in range(5001)]
    svg = str(charts.loss_curves(points, y="loss"))
    assert len(svg) < 60_000


def test_graph_layers_follow_parents_and_ignore_strangers():
    nodes = [lineage_graph.Node("child", "data", "", "", ("source", "gone")), lineage_graph.Node("source", "data", "<i>", "")]
    svg = str(lineage_graph.draw(nodes))
    assert svg.count('class="edge"') == 1 and "&lt;i&gt;" in svg
    height = {name: float(y) for y, name in re.findall(r'y="([\d.]+)">(child|source)<', svg)}
    assert height["source"] < height["child"]


def test_figures_are_worded():
    assert share(0.1234) == "12.3 %" and share(None) == "–"
    assert duration(5.04) == "5.0 s" and duration(125) == "2 min 05 s"
    assert size(999) == "999 B" and size(2.1e9) == "2.10 GB" and size(3.2e6) == "3 MB"


@pytest.fixture(scope="module")
def half_a_run(pages, tmp_path_factory):
    """A run folder that has come as far as deduplicated documents, and one training run's metrics."""
    folder = tmp_path_factory.mktemp("run")
    assert run(["curate", str(pages), "--out", str(folder / "curated"), "--workers", "0", "--quiet", "families=[language, gopher_quality]"]) == 0
    assert run(["dedup", str(folder / "curated"), "--out", str(folder / "deduped"), "--workers", "0", "--quiet"]) == 0
    (folder / "run.json").write_text(json.dumps({"job": "demo", "crawl": HOSTILE, "seed": 3, "version": "0.1.0"}))
    (folder / "pretrain").mkdir()
    rows = [
        {"step": step, "loss": 8.0 - step, "tokens": 64 * step, "tokens_per_second": 100.0, **({"validation": {"text": 9.0 - step}} if step == 3 else {})}
        for step in range(4)
    ]
    (folder / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    (folder / "timings.jsonl").write_text(
        '{"step": "curate", "begun": true}\n{"step": "curate", "finished": true, "seconds": 2.5, "peak_bytes": 1000000, "figures": {}}\n'
    )
    return folder


def test_an_unfinished_run_has_a_report_too(half_a_run, tmp_path):
    found = facts.collect(half_a_run)
    assert [stage["stage"] for stage in found["funnel"]] == ["curate", "dedup"]
    assert found["funnel"][0]["rows_in"] == 42 and found["funnel"][0]["kept"] == found["funnel"][1]["rows_in"]
    for stage in found["funnel"]:
        assert sum(reason["count"] for reason in stage["reasons"]) == stage["rows_in"] - stage["kept"]
        assert all(reason["example"]["url"] for reason in stage["reasons"])
    assert found["languages"][0]["language"] == "English"
    assert found["duplicates"]["removed"] == 1 and found["duplicates"]["examples"][0]["copies"]
    assert found["accuracy"] is None and found["generation"] is None and found["mixtures"] == []
    assert len(learning.metrics(half_a_run / "pretrain")) == 4  # the cut line is left out
    path = write_report(found, tmp_path / "report.html")
    page = parse(path.read_text(encoding="utf-8"))
    assert {"funnel", "languages", "duplicates", "training", "timings", "lineage"} <= set(page.ids) and "accuracy" not in page.ids


def test_the_command_writes_it(half_a_run, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert run(["report", str(half_a_run), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == out.stat().st_size > 20_000


def chromium():
    return next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desk"])
def test_it_renders_in_a_browser_without_errors(everything, tmp_path, width):
    if chromium() is None:
        pytest.skip("no Chromium binary on this machine")
    page = write_report(everything, tmp_path / "report.html")
    quiet = [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-quic",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    line = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"]
    shot = tmp_path / "shot.png"
    done = subprocess.run(
        [*line, f"--window-size={width},4000", "--hide-scrollbars", f"--screenshot={shot}", "--virtual-time-budget=2000", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shot.stat().st_size > 50_000
    assert "CONSOLE" not in done.stderr, [entry for entry in done.stderr.splitlines() if "CONSOLE" in entry]
    dumped = subprocess.run([*line, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    parsed = parse(dumped.stdout[dumped.stdout.index("<html") :])
    assert set(SECTIONS) <= set(parsed.ids) and "script" not in parsed.tags
    assert "<title>1,013 pages to a model that reasons</title>" in dumped.stdout
