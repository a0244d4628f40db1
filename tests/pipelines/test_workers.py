"""Worker processes: every item answered whatever dies, errors as they were, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
import pytest

from pipelines.cluster import Cluster, open_cluster
from pipelines.errors import UserError
from pipelines.workers import ATTEMPTS, WorkerDied


def square(number):
    return number * number


def die_once(item):
    """The first attempt at an item that is a path ends by SIGKILL."""
    if isinstance(item, Path) and not item.exists():
        item.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return str(item)


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def note(path):
    with open(path, "a") as file:
        file.write("tried\n")
    if "user" in path:
        raise UserError("the user's mistake")
    raise OSError(5, "the network's", path)


class Odd(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one, two, kept=None):
        super().__init__(f"{one} {two}")
        self.kept = kept


def odd(kept):
    raise Odd("very", "odd", kept and (lambda: "no pickle holds this"))


@pytest.fixture(scope="module")
def cluster():
    with open_cluster(2) as workers:
        yield workers


def test_every_item_is_answered_under_its_index(cluster):
    assert dict(cluster.map(square, range(20))) == dict(Cluster().map(square, range(20))) == {n: n * n for n in range(20)}
    assert list(cluster.map(square, [])) == []


def test_an_item_whose_worker_died_goes_to_another(cluster, tmp_path):
    items = [0, 1, tmp_path / "dies", 3, 4]
    assert dict(cluster.map(die_once, items)) == dict(enumerate(map(str, items)))


def test_an_item_that_kills_every_worker_is_an_error(cluster):
    with pytest.raises(WorkerDied, match=f"died at its work {ATTEMPTS} times .exit code -9"):
        list(cluster.map(die, [0]))
    assert dict(cluster.map(square, [3])) == {0: 9}


def test_errors_arrive_as_they_were_raised(cluster, tmp_path):
    with pytest.raises(OSError, match="the network's") as failed:
        list(cluster.map(note, [str(tmp_path / "network")]))
    assert "note" in [frame.name for frame in traceback.extract_tb(failed.value.__traceback__)], "the traceback ends where it was raised"
    assert (tmp_path / "network").read_text() == "tried\n" * ATTEMPTS
    with pytest.raises(UserError):
        list(cluster.map(note, [str(tmp_path / "user")]))
    assert (tmp_path / "user").read_text() == "tried\n", "a mistake is not tried again"
    with pytest.raises(Odd, match="very odd"):
        list(cluster.map(odd, [False]))
    with pytest.raises(RuntimeError, match="Odd: very odd"):
        list(cluster.map(odd, [True]))


def test_workers_that_are_busy_when_nobody_asks_any_more_are_stopped(cluster):
    results = cluster.map(time.sleep, [0, 60, 60])
    next(results)
    results.close()
    assert dict(cluster.map(square, [1, 2])) == {0: 1, 1: 4}


def test_workers_do_not_outlive_the_process_that_gives_them_items(tmp_path):
    """Its own end by SIGKILL is all it takes; a worker at work ends after its item."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, time\nfrom pipelines.cluster import open_cluster\n"
        "if __name__ == '__main__':\n    with open_cluster(2) as workers:\n        results = workers.map(time.sleep, [0, 0.2, 0.2])\n"
        "        next(results)\n        print(os.getpid(), flush=True)\n        time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(children) >= 3, "two workers and what they were forked from"
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
