"""The cache holds its bound, keeps what is in use, checks what arrives, and leaves nothing behind when it is interrupted."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.shard_cache import ShardCache


@pytest.fixture
def store():
    """Files of 1000 bytes in memory: name -> (uri, sha256)."""
    fs = fsspec.filesystem("memory")
    made = {}
    for name in "abcdef":
        data = (name * 1000).encode()
        fs.pipe_file(f"/store/{name}", data)
        made[name] = (f"memory://store/{name}", hashlib.sha256(data).hexdigest())
    return made


def stored(folder):
    return {path.name for path in folder.iterdir() if path.suffix not in (".lock",) and path.name != "lock"}


def test_the_bound_holds_and_what_is_in_use_stays(store, tmp_path):
    cache, other = ShardCache(tmp_path, 3000), ShardCache(tmp_path, 3000)
    held = other.array(*store["a"], np.uint8)
    other._recent.clear()  # only `held` keeps it now
    for name in "bcdef":
        assert bytes(cache.array(*store[name], np.uint8)[:3]) == name.encode() * 3
        assert sum(os.path.getsize(tmp_path / file) for file in stored(tmp_path)) <= 3000
        assert store["a"][1] in stored(tmp_path)
    assert {store[name][1] for name in "ef"} < stored(tmp_path)
    assert held.tobytes() == b"a" * 1000
    del held
    cache.array(*store["b"], np.uint8)
    assert store["a"][1] not in stored(tmp_path)


def test_a_bound_too_small_for_what_is_in_use_is_an_error(store, tmp_path):
    cache = ShardCache(tmp_path, 2000)
    held = [cache.array(*store[name], np.uint8) for name in "ab"]
    with pytest.raises(UserError, match="files in use leave 0 of 2,000; raise GRISTMILL_CACHE_GB"):
        cache.array(*store["c"], np.uint8)
    assert [array[0] for array in held] == [ord("a"), ord("b")]


def test_damage_on_the_way_is_found_and_not_kept(store, tmp_path):
    fsspec.filesystem("memory").pipe_file("/store/a", b"x" * 1000)
    with pytest.raises(UserError, match="store/a: the bytes that arrived"):
        ShardCache(tmp_path, 3000).array(*store["a"], np.uint8)
    assert stored(tmp_path) == set()


def test_a_file_is_fetched_once(store, tmp_path, monkeypatch):
    cache, calls = ShardCache(tmp_path, 3000), []
    monkeypatch.setattr(cache, "_fetch", lambda *file, original=cache._fetch: calls.append(file) or original(*file))
    assert np.array_equal(cache.array(*store["a"], np.uint8), cache.array(*store["a"], "<u8").view(np.uint8))
    ShardCache(tmp_path, 3000).array(*store["a"], np.uint8)
    assert len(calls) == 1


READER = """
import sys, time, numpy as np
from pipelines.shard_cache import ShardCache
cache = ShardCache(sys.argv[1], 10_000_000)
array = cache.array("file://" + sys.argv[2], sys.argv[3], np.uint8)
print("mapped", flush=True)
import pipelines.shard_cache as module
class Slow:
    def __init__(self): self.left = 100
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def read(self, n):
        print("arriving", flush=True); time.sleep(0.05); return b"1" * 1000
class FS:
    def size(self, _): return 2_000_000
    def open(self, *_): return Slow()
module.fsspec = type("fsspec", (), {"url_to_fs": staticmethod(lambda uri: (FS(), uri))})
cache.array("slow://b", "b" * 64, np.uint8)
"""


def test_an_interrupt_leaves_no_lock_no_part_and_no_shared_memory(tmp_path):
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.write_bytes(b"7" * 5000)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    for stop in (signal.SIGINT, signal.SIGKILL):
        child = subprocess.Popen([sys.executable, "-c", READER, str(cache), str(source), sha256], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        while child.stdout.readline() != "arriving\n":
            assert child.poll() is None
        with open(f"/proc/{child.pid}/maps") as maps:
            assert "/dev/shm" not in maps.read()  # nothing shared that could outlive it
        child.send_signal(stop)
        child.wait(20)
        child.stdout.close()
        assert any(path.suffix == ".part" for path in cache.iterdir()) == (stop == signal.SIGKILL)
    start = time.monotonic()
    small = ShardCache(cache, 5000)
    assert small.array(f"file://{source}", sha256, np.uint8)[0] == ord("7") and time.monotonic() - start < 20
    del small
    again = ShardCache(cache, 6000)  # a part left by a kill is the first to go
    source.write_bytes(b"8" * 1000)
    again.array(f"file://{source}", hashlib.sha256(source.read_bytes()).hexdigest(), np.uint8)
    assert not [path for path in cache.iterdir() if path.suffix == ".part"]
