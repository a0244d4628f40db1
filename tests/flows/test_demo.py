"""The main job, end to end at its smallest scale: on a crawl of files, killed in six stages, under Prefect and without."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytestmark = pytest.mark.slow
DEADLINE = 240


def line(pages, out, *more):
    return [sys.executable, "-m", "flows.cli", "demo", "--recipe", "demo-smoke", "--crawl", str(pages), "--out", str(out), "--workers", "0", *more]


@pytest.fixture(scope="module")
def clean(pages, environment, tmp_path_factory):
    """An uninterrupted run through an embedded Prefect server: (folder, its summary)."""
    folder = tmp_path_factory.mktemp("demo") / "clean"
    arguments = line(pages, folder.name, "--json")  # a folder named as people name it: from where they stand
    done = subprocess.run(arguments, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_whole_job(clean):
    folder, told = clean
    assert {"report.html", "summary.json", "run.json", "mixture-1.yaml", "mixture-2.yaml"} <= {entry.name for entry in folder.iterdir()}
    assert [stage["stage"] for stage in told["funnel"]] == ["curate", "dedup", "held out", "leak check"]
    assert told["funnel"][0]["rows_in"] == 42
    loss = told["held_out_text"]["held-out text, nats a token"]
    assert loss["pretrain"] < loss["untrained"]
    assert set(told["accuracy"]["all"]) == {"untrained", "pretrain", "sft", "continued", "rl"}
    assert told["leaks_remaining"] == 0
    assert told["generation"]["written"] > 0
    assert told["generation"]["written"] >= told["generation"]["verified"] >= told["generation"]["accepted"] >= 0
    assert set(told["seconds"]) >= {
        "crawl",
        "curate",
        "dedup",
        "holdout",
        "problems",
        "tokenizer",
        "mixture 1",
        "pretrain",
        "sft",
        "generate",
        "mixture 2",
        "continued",
        "rl",
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(
        f'id="{name}"' in page
        for name in ("funnel", "languages", "duplicates", "mixture", "training", "accuracy", "generation", "samples", "timings", "lineage")
    )
    assert "<script" not in page


def test_questions_about_the_run(clean, pages, gristmill):
    folder, _ = clean
    why = gristmill("why", str(pages / "short.html"), str(folder))
    assert why.returncode == 0 and "language.score" in why.stdout
    chain = gristmill("trace", str(folder), "--step", "1", "--sample", "0", "--json")
    assert chain.returncode == 0, chain.stderr
    spans = json.loads(chain.stdout)["spans"]
    records = [span["document"]["record"].get("source") for span in spans]
    assert all(source == "generators.tasks" or source.endswith(".html") for source in records)
    beyond = gristmill("trace", str(folder), "--step", "100000", "--sample", "0")
    assert beyond.returncode == 2 and beyond.stderr.count("\n") == 1


def test_the_folder_of_another_run_is_refused(clean, pages, gristmill):
    folder, _ = clean
    done = gristmill("demo", "--recipe", "demo-smoke", "--crawl", str(pages), "--out", str(folder), "--seed", "5", "--no-prefect")
    assert done.returncode == 2 and "output folder of another run: differs in seed: 0 there, 5 here" in done.stderr


def test_killed_in_six_stages_it_ends_in_the_same_bytes(clean, pages, environment, tmp_path):
    out = tmp_path / "killed"
    marks = {  # what shows that a stage is under way
        "curate": lambda: (out / "curated/plan.json").exists(),
        "mixture 1": lambda: (out / "shards-1/plan.json").exists(),
        "pretrain": lambda: any((out / "pretrain/checkpoints").glob("*")),
        "sft": lambda: any((out / "sft/checkpoints").glob("*")),
        "generate": lambda: any((out / "generated/receipts").glob("*")),
        "rl": lambda: any((out / "rl/checkpoints").glob("*")),
    }
    log = (tmp_path / "log").open("w+")
    for name, under_way in marks.items():
        process = subprocess.Popen(line(pages, out, "--no-prefect", "--quiet"), env=environment, stderr=log, start_new_session=True)
        deadline = time.monotonic() + DEADLINE
        while not under_way() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, f"ended before it could be killed in {name}: {process.returncode} {log.seek(0)} {log.read()}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {
        path: path.stat().st_mtime_ns for place in ("curated", "deduped", "text", "shards-1", "pretrain") for path in (out / place).rglob("*") if path.is_file()
    }
    subprocess.run(line(pages, out, "--quiet"), env=environment, check=True, timeout=DEADLINE)  # the last sitting is Prefect's
    assert before and all(path.stat().st_mtime_ns == then for path, then in before.items()), "a finished part was redone"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["digests"] == clean[1]["digests"]
    assert summary["accuracy"] == clean[1]["accuracy"] and summary["held_out_text"] == clean[1]["held_out_text"]
    assert first_losses(out) == first_losses(clean[0])


def first_losses(folder):
    rows = [json.loads(row) for row in (folder / "pretrain/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows]


def test_against_a_prefect_server(pages, environment, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    quiet = {**environment, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_UI_ENABLED": "false"}
    serve = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(serve, env=quiet, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{url}/health"):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        run = [sys.executable, "-m", "flows.cli", "flow", "run", "curation", "--out", str(tmp_path / "run"), f"crawl={pages}", "--workers", "2", "--json"]
        done = subprocess.run(run, env={**quiet, "PREFECT_API_URL": url}, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        artifacts = {entry["key"]: entry for entry in post(f"{url}/artifacts/filter", {"limit": 50})}
        assert artifacts["curation-progress"]["type"] == "progress" and float(artifacts["curation-progress"]["data"]) == 100.0
        assert {"curation-funnel", "curation-reasons"} <= set(artifacts)
        runs = {entry["name"]: entry["state_type"] for entry in post(f"{url}/flow_runs/filter", {"limit": 50})}
        assert runs.pop("data") == "COMPLETED" and set(runs.values()) == {"COMPLETED"}
        tasks = {entry["name"] for entry in post(f"{url}/task_runs/filter", {"limit": 50})}
        assert tasks >= {"crawl", "curate", "dedup"}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def test_a_server_that_is_not_there_is_one_line(pages, gristmill, tmp_path):
    done = gristmill("flow", "run", "curation", "--out", str(tmp_path / "run"), f"crawl={pages}", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 2 and "no Prefect server answers" in done.stderr and done.stderr.count("\n") == 1


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def post(url, body):
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)
