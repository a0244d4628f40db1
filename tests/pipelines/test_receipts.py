"""Two attempts at one part: equal bytes are one result whoever is faster, other bytes are refused, and no run gets another's parts."""

import itertools
import json
import shutil
import threading

import fsspec
import pyarrow as pa
import pytest

from pipelines.atomic import create_file
from pipelines.dataset import Dataset
from pipelines.receipts import Receipts
from pipelines.recipe import Recipe
from pipelines.stage import Stage, run_stage


class Nothing(Recipe):
    pass


def attempt(folder, name, data):
    """(temporary, final) of a file that an attempt has written."""
    (folder / name).write_text(data)
    return [(str(folder / name), str(folder / "result"))]


@pytest.fixture
def receipts(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"fingerprint": "f"}))
    return Receipts(fsspec.filesystem("file"), str(tmp_path), str(tmp_path), "f")


@pytest.mark.parametrize("uri", ["memory://created/here", "{}/created/here"])
def test_only_one_of_many_creates_a_file(uri, tmp_path):
    uri = uri.format(tmp_path)
    with fsspec.open(uri.replace("here", "there"), "wb", auto_mkdir=True) as file:
        file.write(b"beside it")
    won = []
    threads = [threading.Thread(target=lambda n=n: create_file(uri, str(n)) and won.append(n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fsspec.open(uri, "rb").open().read() == str(won[0]).encode() and len(won) == 1


def test_the_second_attempt_gets_the_firsts_receipt(receipts, tmp_path):
    first = receipts.publish(0, {"rows": 1}, attempt(tmp_path, "a", "one"))
    assert receipts.publish(0, {"rows": 2}, attempt(tmp_path, "b", "two")) == first  # a late one changes nothing, whatever it holds
    assert (tmp_path / "result").read_text() == "one" and (tmp_path / "b").exists()


def test_a_claimant_that_died_is_finished_by_an_equal_attempt_and_guarded_from_another(receipts, tmp_path):
    content = {"fingerprint": "f", "rows": 1}
    create_file(str(tmp_path / "receipts/part-00000.claim"), json.dumps(content))
    with pytest.raises(RuntimeError, match="different bytes"):
        receipts.publish(0, {"rows": 2}, attempt(tmp_path, "b", "two"))
    assert not (tmp_path / "result").exists() and receipts.read(0) is None
    assert receipts.publish(0, {"rows": 1}, attempt(tmp_path, "a", "one")) == content == receipts.read(0)
    assert (tmp_path / "result").read_text() == "one" and not list(tmp_path.glob("receipts/*.claim"))


def test_every_interleaving_of_two_equal_attempts_ends_alike(tmp_path, monkeypatch):
    """Each file operation of one attempt is a moment at which the other runs from start to end."""
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        folder.mkdir()
        (folder / "plan.json").write_text(json.dumps({"fingerprint": "f"}))
        fs = fsspec.filesystem("file")
        slow, fast = (Receipts(fs, str(folder), str(folder), "f") for _ in range(2))
        operations = itertools.count()
        interrupted = []

        def interrupt(operation, moment=moment, operations=operations, folder=folder, fast=fast, interrupted=interrupted):
            def run(*arguments, **options):
                if next(operations) == moment:
                    interrupted.append(moment)
                    fast.publish(0, {"rows": 1}, attempt(folder, "b", "one"))
                return operation(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            for name in ("open", "mv", "rm"):
                patch.setattr(fs, name, interrupt(getattr(fs, name)))
            patch.setattr("pipelines.receipts.create_file", interrupt(create_file))
            slow.publish(0, {"rows": 1}, attempt(folder, "a", "one"))
        assert slow.read(0) == {"fingerprint": "f", "rows": 1}
        assert (folder / "result").read_text() == "one" and not list(folder.glob("receipts/*.claim"))
        if not interrupted:
            break
    assert moment >= 6


def test_a_worker_left_over_from_another_run_publishes_nothing(tmp_path):
    out = tmp_path / "out"

    def slow(payload, config, output):
        if config_of_run["name"] == "first":  # while it works, someone removes the folder and starts another run there
            config_of_run["name"] = "second"
            shutil.rmtree(out)
            run_stage(stage(2), [], Nothing(), str(out))
        output.read(payload["value"])
        output.write(pa.table({"value": [payload["value"]] * payload["value"]}))

    def stage(value):
        return Stage(name="slow", version=value, plan=lambda inputs, config: [{"value": value}], run=slow)

    config_of_run = {"name": "first"}
    with pytest.raises(RuntimeError, match="given to another run"):
        run_stage(stage(1), [], Nothing(), str(out))
    assert Dataset.open(str(out)).scan().collect()["value"].to_list() == [2, 2]


def test_a_receipt_of_another_run_does_not_count(receipts, tmp_path):
    receipts.publish(0, {"rows": 1}, [])
    assert Receipts(fsspec.filesystem("file"), str(tmp_path), str(tmp_path), "g").read(0) is None
