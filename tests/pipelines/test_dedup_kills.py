"""SIGKILL at random moments: a worker of a local cluster, a worker of a separate scheduler, the whole run. The bytes stay the same.

Slow: every case starts processes. `GRISTMILL_KILLS=N` runs N moments a case instead of two.
"""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset import Dataset
from pipelines.dedup import DedupRecipe, dedup

pytestmark = pytest.mark.slow

MOMENTS = int(os.environ.get("GRISTMILL_KILLS", "2"))
RECIPE = {"buckets": 3, "minhash": {"bands": 20, "rows": 5}}
RUN = textwrap.dedent("""
    import json, sys
    from pipelines.cluster import open_cluster
    from pipelines.dedup import DedupRecipe, dedup
    if __name__ == "__main__":
        inputs, recipe, out, workers, scheduler = json.loads(sys.argv[1])
        with open_cluster(workers, scheduler) as cluster:
            print("running", flush=True)
            dedup(inputs, DedupRecipe(**recipe), out, cluster)
""")


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """8 parts of 300 documents: chains of near-copies, exact copies, several captures of a URL."""
    folder = tmp_path_factory.mktemp("crawl")
    draw = np.random.default_rng(11)
    vocabulary = np.array([bytes(letters).decode() for letters in draw.integers(97, 123, (4000, 6)).astype(np.uint8)])
    rows = []
    while len(rows) < 2400:
        words = vocabulary[draw.integers(0, 4000, 150)]
        for _ in range(draw.choice([1, 1, 1, 2, 5])):
            rows.append({"id": f"d{len(rows):05d}", "url": f"https://example.org/{draw.integers(0, 6000)}", "text": " ".join(words), "captured_at": "2024"})
            if draw.random() < 0.7:
                words = np.concatenate((words[4:], vocabulary[draw.integers(0, 4000, 4)]))
    draw.shuffle(rows)
    paths = []
    for part in range(8):
        paths.append(str(folder / f"part-{part:05d}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows[part * 300 : part * 300 + 300]), paths[-1])
    return paths


def digests(out):
    """The digest of the result and of every step on the way to it."""
    work = f"{out}/work"
    return {"": Dataset.open(str(out)).digest} | {step: Dataset.open(f"{work}/{step}").digest for step in sorted(os.listdir(work))}


@pytest.fixture(scope="module")
def undisturbed(crawl, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("undisturbed") / "out")
    begin = time.monotonic()
    dedup(crawl, DedupRecipe(**RECIPE), out)
    return digests(out), time.monotonic() - begin


@contextmanager
def started(*command):
    process = subprocess.Popen([sys.executable, *command], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


def script(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(RUN)
    return str(path)


def workers_of(pid):
    """Processes that run parts: spawned children of the process that are no resource trackers."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def kill_one(pid, draw):
    victims = sorted(workers_of(pid), key=lambda process: process.pid)
    if victims:
        try:
            draw.choice(victims).kill()
        except psutil.NoSuchProcess:
            pass


def no_leftovers(out):
    return not [name for _, _, names in os.walk(out) for name in names if name.startswith(".")]


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_worker_of_a_local_cluster(moment, crawl, undisturbed, tmp_path):
    draw = random.Random(f"local {moment}")
    with started(script(tmp_path), json.dumps([crawl, RECIPE, str(tmp_path / "out"), 2, None])) as run:
        deadline = time.monotonic() + draw.uniform(0.3, 7)
        while time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.01)
        kill_one(run.pid, draw)
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert digests(tmp_path / "out") == undisturbed[0]
    assert no_leftovers(tmp_path / "out")


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_worker_of_a_separate_scheduler(moment, crawl, undisturbed, tmp_path):
    draw = random.Random(f"separate {moment}")
    found = str(tmp_path / "scheduler.json")
    worker = ("-m", "distributed.cli.dask_worker", "--scheduler-file", found, "--nthreads", "1", "--no-dashboard", "--memory-limit", "0")
    with (
        started("-m", "distributed.cli.dask_scheduler", "--scheduler-file", found, "--port", "0", "--no-dashboard", "--host", "127.0.0.1") as scheduler,
        started(*worker) as first,
        started(*worker) as second,
    ):
        while not os.path.exists(found):
            assert scheduler.poll() is None, scheduler.stderr.read()
            time.sleep(0.05)
        address = json.load(open(found))["address"]
        with started(script(tmp_path), json.dumps([crawl, RECIPE, str(tmp_path / "out"), None, address])) as run:
            time.sleep(draw.uniform(0.3, 7))
            if draw.random() < 0.5:
                kill_one(draw.choice([first, second]).pid, draw)  # its nanny starts another
            else:
                os.killpg(draw.choice([first, second]).pid, signal.SIGKILL)  # nanny and worker: one is left
            _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    assert digests(tmp_path / "out") == undisturbed[0]
    assert no_leftovers(tmp_path / "out")


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_whole_run_killed_and_resumed_while_its_workers_live_on(moment, crawl, undisturbed, tmp_path):
    """Only the run's own process dies: for a moment its orphaned workers write beside those of the resumed run."""
    draw = random.Random(f"whole {moment}")
    arguments = (script(tmp_path), json.dumps([crawl, RECIPE, str(tmp_path / "out"), 2, None]))
    with started(*arguments) as first:
        time.sleep(draw.uniform(1, 7))
        os.kill(first.pid, signal.SIGKILL)
        with started(*arguments) as second:
            _, errors = second.communicate(timeout=120)
        assert second.returncode == 0, errors
    assert digests(tmp_path / "out") == undisturbed[0]
    assert no_leftovers(tmp_path / "out")
