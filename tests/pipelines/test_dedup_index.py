"""A crawl against the index of all earlier ones: what is like an earlier survivor leaves, and running it again, or killing it, changes nothing."""

import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cluster import open_cluster
from pipelines.dataset import Dataset
from pipelines.dedup import DedupRecipe, dedup
from pipelines.dedup.index import open_index
from pipelines.errors import UserError

RECIPES = {
    "plain": DedupRecipe(buckets=3),
    "verified": DedupRecipe(buckets=3, minhash={"bands": 20, "rows": 5, "verify": 0.7}),
    "texts": DedupRecipe(buckets=2, minhash=None, exact={"url": False}),
}


@pytest.fixture(scope="module")
def crawls(tmp_path_factory):
    """Three crawls, two parts each: family f's copies, exact or with an edit, are scattered over them; copy c of family f is `f-c`."""
    folder = tmp_path_factory.mktemp("crawls")
    draw = np.random.default_rng(4)
    vocabulary = np.array([bytes(letters).decode() for letters in draw.integers(97, 123, (3000, 6)).astype(np.uint8)])
    crawls = [[], [], []]
    for family in range(200):
        words = vocabulary[draw.integers(0, 3000, 120)]
        for copy in range(draw.integers(1, 5)):
            edited = words.copy()
            if copy % 2:
                edited[:2] = vocabulary[draw.integers(0, 3000, 2)]
            row = {"id": f"{family}-{copy}", "url": f"https://example.org/{family}/{copy // 2}", "text": " ".join(edited), "captured_at": f"{copy}"}
            crawls[draw.integers(0, 3)].append(row)
    paths = []
    for number, rows in enumerate(crawls):
        paths.append([str(folder / f"{number}-{part}.parquet") for part in range(2)])
        for part, path in enumerate(paths[-1]):
            pq.write_table(pa.Table.from_pylist(rows[part::2]), path)
    return paths


def index_digests(index):
    return [Dataset.open(f"{index}/{name}").digest for name in sorted(entry.rpartition("/")[2] for entry in fsspec.filesystem("file").ls(index, detail=False))]


def family(identifier):
    return identifier.split("-")[0]


@pytest.mark.parametrize("kind", RECIPES)
def test_crawl_by_crawl_keeps_what_all_at_once_keeps_of_each_family(kind, crawls, tmp_path):
    recipe, index = RECIPES[kind], str(tmp_path / "index")
    kept, seen = [], set()
    for number, paths in enumerate(crawls):
        result = dedup(paths, recipe, str(tmp_path / f"out-{number}"), index=index)
        assert result.rows_in == sum(pq.read_metadata(path).num_rows for path in paths)
        seen |= set(result.scan(["id"]).collect()["id"])
        for row in result.scan_rejected(["id", "duplicate_of", "cluster_id"]).collect().iter_rows(named=True):
            assert row["duplicate_of"] in seen or row["duplicate_of"] in result.scan_rejected(["id"]).collect()["id"].to_list()
            assert family(row["duplicate_of"]) == family(row["id"])
        kept += result.scan(["id"]).collect()["id"].to_list()
    whole = dedup([path for paths in crawls for path in paths], recipe, str(tmp_path / "whole"))
    families = sorted(map(family, kept))
    assert families == sorted(map(family, whole.scan(["id"]).collect()["id"]))
    assert kind == "texts" or len(set(families)) == len(families) == 200  # every family is one cluster, however it is cut
    assert len(open_index(index, recipe, crawls[0]).earlier) == 0 and len(open_index(index, recipe, crawls[2]).earlier) == 2


def test_the_same_crawl_again_changes_nothing(crawls, tmp_path):
    recipe, index = RECIPES["verified"], str(tmp_path / "index")
    results = [dedup(paths, recipe, str(tmp_path / f"out-{number}"), index=index).digest for number, paths in enumerate(crawls)]
    before = index_digests(index)
    for number in (1, 0, 2):  # from scratch, in any order, also from files that lie elsewhere
        moved = [shutil.copy(path, tmp_path) for path in crawls[number]]
        assert dedup(moved, recipe, str(tmp_path / f"again-{number}"), index=index).digest == results[number]
        assert dedup(crawls[number], recipe, str(tmp_path / f"out-{number}"), index=index).digest == results[number]
    assert index_digests(index) == before and len(before) == 3


def test_other_numbers_of_buckets_find_the_same(crawls, tmp_path):
    """Each crawl cuts the key space in its own way, and reads the earlier partitions that overlap its buckets."""
    expected = None
    for sizes in ((1, 1, 1), (3, 7, 2), (8, 3, 5)):
        index, kept = str(tmp_path / f"index-{sizes}"), []
        for paths, buckets in zip(crawls, sizes, strict=True):
            recipe = DedupRecipe(buckets=buckets, minhash={"verify": 0.7})
            kept.append(dedup(paths, recipe, f"{index}-out-{len(kept)}", index=index).scan(["id"]).collect()["id"].to_list())
        expected = expected or kept
        assert kept == expected


def test_processes_extend_the_index_with_the_same_bytes(crawls, tmp_path):
    recipe = RECIPES["verified"]
    with open_cluster(2) as cluster:
        for number, paths in enumerate(crawls[:2]):
            serial = dedup(paths, recipe, str(tmp_path / f"serial-{number}"), index=str(tmp_path / "index"))
            spread = dedup(paths, recipe, str(tmp_path / f"spread-{number}"), cluster, index=str(tmp_path / "other"))
            assert serial.digest == spread.digest
    assert index_digests(str(tmp_path / "index")) == index_digests(str(tmp_path / "other"))


def test_interrupted_anywhere_it_is_finished_with_the_same_bytes(crawls, tmp_path):
    recipe, index = RECIPES["plain"], str(tmp_path / "index")
    dedup(crawls[0], recipe, str(tmp_path / "first"), index=index)

    class Stop(Exception):
        pass

    def stop_at(step):
        def stop(event):
            if event.stage == step and event.done:
                raise Stop

        return stop

    expected = dedup(crawls[1], recipe, str(tmp_path / "straight"), index=shutil.copytree(index, tmp_path / "index-straight").as_posix())
    for step in ("dedup.url-groups", "dedup.edges", "dedup.members", "dedup.survivors", "dedup.index", "dedup"):
        copy, out = shutil.copytree(index, tmp_path / f"index-{step}").as_posix(), str(tmp_path / f"out-{step}")
        with pytest.raises(Stop):
            dedup(crawls[1], recipe, out, progress=stop_at(step), index=copy)
        if step == "dedup.index":
            with pytest.raises(UserError, match="another run has begun to extend the index"):
                dedup(crawls[2], recipe, str(tmp_path / "third"), index=copy)
        assert dedup(crawls[1], recipe, out, index=copy).digest == expected.digest
        assert index_digests(copy) == index_digests(str(tmp_path / "index-straight"))


def test_mistakes(crawls, tmp_path):
    index = str(tmp_path / "index")
    dedup(crawls[0], RECIPES["plain"], str(tmp_path / "out"), index=index)
    with pytest.raises(UserError, match="other values of minhash"):
        dedup(crawls[1], RECIPES["verified"], str(tmp_path / "other"), index=index)
    dedup(crawls[1], RECIPES["plain"], str(tmp_path / "without"))
    with pytest.raises(UserError, match="not a crawl of the index"):
        dedup(crawls[1], RECIPES["plain"], str(tmp_path / "without"), index=index)
