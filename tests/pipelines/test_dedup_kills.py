"""SIGKILL at random moments: a worker of a local cluster, a worker of a separate scheduler, the whole run. The bytes stay the same.

The run is the longest chain there is: URLs, texts, verified MinHash, against an index that it extends. Each moment is drawn anew over the
length of such a run, so early ones hit the start of the cluster and later ones a step or a write.

Slow: every case starts processes. `GRISTMILL_KILLS=N` runs N moments a case instead of two.
"""

import json
import os
import random
import re
import shutil
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

LONGEST = 10  # seconds: about what a run takes with its cluster
MOMENTS = int(os.environ.get("GRISTMILL_KILLS", "2"))
RECIPE = {"buckets": 3, "minhash": {"bands": 20, "rows": 5, "verify": 0.5}}
RUN = textwrap.dedent("""
    import json, sys
    from pipelines.cluster import open_cluster
    from pipelines.dedup import DedupRecipe, dedup
    if __name__ == "__main__":
        inputs, recipe, folder, workers, scheduler = json.loads(sys.argv[1])
        with open_cluster(workers, scheduler) as cluster:
            dedup(inputs, DedupRecipe(**recipe), f"{folder}/out", cluster, index=f"{folder}/index")
""")


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """8 parts of 300 documents: chains of near-copies, exact copies, several captures of a URL. The first two are an earlier crawl."""
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


@pytest.fixture(scope="module")
def earlier(crawl, tmp_path_factory):
    """An index that knows the first two parts."""
    folder = tmp_path_factory.mktemp("earlier")
    dedup(crawl[:2], DedupRecipe(**RECIPE), str(folder / "out"), index=str(folder / "index"))
    return folder / "index"


@pytest.fixture
def folder(earlier, tmp_path):
    shutil.copytree(earlier, tmp_path / "index")
    return tmp_path


def digests(folder):
    """The digest of the result, of every step on the way to it, and of the crawl in the index."""
    work = f"{folder}/out/work"
    steps = {step: Dataset.open(f"{work}/{step}").digest for step in sorted(os.listdir(work))}
    return {"": Dataset.open(f"{folder}/out").digest, "index": Dataset.open(f"{folder}/index/crawl-00001").digest} | steps


@pytest.fixture(scope="module")
def undisturbed(crawl, earlier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(earlier, folder / "index")
    dedup(crawl[2:], DedupRecipe(**RECIPE), f"{folder}/out", index=f"{folder}/index")
    return digests(folder)


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


def script(folder):
    path = folder / "run.py"
    path.write_text(RUN)
    return str(path)


def workers_of(pid):
    """Processes that run parts, and the one that local workers are forked from: all but resource trackers."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if re.search("spawn_main|forkserver", " ".join(child.cmdline()))]
    except psutil.Error:
        return []


def kill_one(pid, draw):
    victims = sorted(workers_of(pid), key=lambda process: process.pid)
    if victims:
        try:
            draw.choice(victims).kill()
        except psutil.NoSuchProcess:
            pass


def no_leftovers(folder):
    return not [name for _, _, names in os.walk(folder) for name in names if name.startswith(".") or name.endswith(".claim")]


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_worker_of_a_local_cluster(moment, crawl, undisturbed, folder):
    draw = random.Random(f"local {moment}")
    with started(script(folder), json.dumps([crawl[2:], RECIPE, str(folder), 2, None])) as run:
        deadline = time.monotonic() + draw.uniform(0.3, LONGEST)
        while time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.01)
        kill_one(run.pid, draw)
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert digests(folder) == undisturbed
    assert no_leftovers(folder)


@contextmanager
def separate_cluster(folder):
    """A `dask scheduler` and two `dask worker`s: (address, the two processes)."""
    found = str(folder / "scheduler.json")
    worker = ("-m", "distributed.cli.dask_worker", "--scheduler-file", found, "--nthreads", "1", "--no-dashboard", "--memory-limit", "0")
    with (
        started("-m", "distributed.cli.dask_scheduler", "--scheduler-file", found, "--port", "0", "--no-dashboard", "--host", "127.0.0.1") as scheduler,
        started(*worker) as first,
        started(*worker) as second,
    ):
        while not os.path.exists(found):
            assert scheduler.poll() is None, scheduler.stderr.read()
            time.sleep(0.05)
        yield json.loads(open(found).read())["address"], [first, second]


@pytest.mark.parametrize("moment", [None, *range(MOMENTS)])
def test_worker_of_a_separate_scheduler(moment, crawl, undisturbed, folder):
    draw = random.Random(f"separate {moment}")
    with separate_cluster(folder) as (address, workers), started(script(folder), json.dumps([crawl[2:], RECIPE, str(folder), None, address])) as run:
        if moment is not None:
            time.sleep(draw.uniform(0.3, LONGEST))
            victim = draw.choice(workers).pid
            if draw.random() < 0.5:
                kill_one(victim, draw)  # its nanny starts another
            else:
                os.killpg(victim, signal.SIGKILL)  # nanny and worker: one is left
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert digests(folder) == undisturbed
    assert no_leftovers(folder)


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_whole_run_killed_and_resumed_while_its_workers_live_on(moment, crawl, undisturbed, folder):
    """Only the run's own process dies: for a moment its orphaned workers write beside those of the resumed run."""
    draw = random.Random(f"whole {moment}")
    arguments = (script(folder), json.dumps([crawl[2:], RECIPE, str(folder), 2, None]))
    with started(*arguments) as first:
        time.sleep(draw.uniform(1, LONGEST))
        os.kill(first.pid, signal.SIGKILL)
        with started(*arguments) as second:
            _, errors = second.communicate(timeout=120)
        assert second.returncode == 0, errors
    assert digests(folder) == undisturbed
    assert no_leftovers(folder)
