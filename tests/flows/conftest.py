"""A small crawl of generated pages, and the command in a process of its own."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all she there would "
    "their we him been has when who will more no if out so said what up its about into than them can only other new some could time these two may then do"
).split()
RARE = "river mountain engine harvest letter window market teacher garden bridge winter history music painter village captain forest doctor kitchen".split()


def page(seed: int) -> str:
    """An English-looking page that the Gopher quality rules keep."""
    rng = random.Random(seed)
    topics = rng.sample(RARE, 6)
    sentence = lambda: " ".join(rng.choice(COMMON if rng.random() < 0.7 else topics) for _ in range(rng.randint(9, 18))).capitalize() + "."
    paragraphs = "".join(f"<p>{' '.join(sentence() for _ in range(rng.randint(4, 7)))}</p>" for _ in range(rng.randint(4, 7)))
    return f"<html><head><title>About the {topics[0]}, {seed}</title></head><body><article><h1>The {topics[0]}</h1>{paragraphs}</article></body></html>"


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> Path:
    """A folder of 40 pages, one copy, and one page that is too short."""
    folder = tmp_path_factory.mktemp("crawl")
    for seed in range(40):
        (folder / f"page{seed:02d}.html").write_text(page(seed), encoding="utf-8")
    shutil.copy(folder / "page00.html", folder / "page99.html")
    (folder / "short.html").write_text("<html><body><p>Too short <script>alert(1)</script>&lt;b&gt;.</p></body></html>", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """One thread a process (tests share two cores), and a cache of the tests' own."""
    cache = str(tmp_path_factory.mktemp("cache"))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    return {**kept, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "XDG_CACHE_HOME": cache, "DO_NOT_TRACK": "1"}


@pytest.fixture(scope="session")
def gristmill(environment):
    """Run the command; returns the finished process."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "flows.cli", *arguments], env={**environment, **changes}, capture_output=True, text=True, timeout=240)

    return run
