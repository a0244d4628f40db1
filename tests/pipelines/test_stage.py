"""The runner: every row accounted for, resume by receipts, the same bytes whoever runs the parts."""

import os
import signal
import subprocess
import sys
import textwrap

import pyarrow as pa
import pytest

from pipelines.cluster import open_cluster
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.recipe import Recipe
from pipelines.stage import Stage, run_stage


class Config(Recipe):
    parts: int = 4
    rows: int = 10
    forget_one: bool = False


def plan(inputs, config):
    return [{"start": index * config.rows} for index in range(config.parts)]


def run(payload, config, output):
    values = range(payload["start"], payload["start"] + config.rows)
    odd = [value for value in values if value % 2]
    even = [value for value in values if value % 2 == 0]
    output.read(config.rows)
    output.write(
        pa.table({"value": even[1:] if config.forget_one else even}),
        pa.table({"value": odd, "reason": ["parity.odd"] * len(odd), "detail": [str(value) for value in odd]}),
    )
    with output.file(f"note-{payload['start']:03d}.txt") as file:
        file.write(b"%d" % payload["start"])
    output.count(sum=sum(even))


NUMBERS = Stage(name="numbers", version=1, plan=plan, run=run)


def test_rows_reasons_and_files(tmp_path):
    dataset = run_stage(NUMBERS, [], Config(), str(tmp_path / "out"))
    assert (dataset.rows_in, dataset.rows, dataset.rejected_rows) == (40, 20, 20)
    assert dataset.reasons == {"parity.odd": 20}
    assert dataset.scan().collect()["value"].to_list() == list(range(0, 40, 2))
    assert dataset.scan_rejected().collect()["detail"].to_list() == [str(value) for value in range(1, 40, 2)]
    assert dataset.counters["sum"] == sum(range(0, 40, 2))
    assert [open(path).read() for path in dataset.files] == ["0", "10", "20", "30"]
    assert sum(batch.num_rows for batch in dataset.batches(batch_size=3)) == 20


def test_a_lost_row_is_caught(tmp_path):
    with pytest.raises(AssertionError, match="10 rows entered, 4 kept"):
        run_stage(NUMBERS, [], Config(forget_one=True), str(tmp_path / "out"))
    assert not Dataset.exists(str(tmp_path / "out"))
    assert not list(tmp_path.glob("out/**/.tmp-*"))


def test_serial_and_processes_give_the_same_bytes(tmp_path):
    serial = run_stage(NUMBERS, [], Config(), str(tmp_path / "serial"))
    with open_cluster(2) as cluster:
        spread = run_stage(NUMBERS, [], Config(), str(tmp_path / "spread"), cluster=cluster)
    assert serial.digest == spread.digest


def test_works_on_any_filesystem():
    dataset = run_stage(NUMBERS, [], Config(parts=2), "memory://numbers")
    assert Dataset.open("memory://numbers").scan().collect().height == dataset.rows == 10


def test_another_runs_folder_is_refused(tmp_path):
    run_stage(NUMBERS, [], Config(), str(tmp_path / "out"))
    with pytest.raises(UserError, match="another run.*config key rows"):
        run_stage(NUMBERS, [], Config(rows=12), str(tmp_path / "out"))


def test_an_edited_input_is_noticed_even_at_the_same_size(tmp_path):
    source = tmp_path / "input.txt"
    source.write_text("one")
    run_stage(NUMBERS, [str(source)], Config(), str(tmp_path / "out"))
    source.write_text("two")
    with pytest.raises(UserError, match="differs in inputs"):
        run_stage(NUMBERS, [str(source)], Config(), str(tmp_path / "out"))


def test_finished_parts_are_not_run_again(tmp_path):
    out = str(tmp_path / "out")
    first = run_stage(NUMBERS, [], Config(), out)
    (tmp_path / "out/dataset.json").unlink()
    (tmp_path / "out/receipts/part-00002.json").unlink()
    before = (tmp_path / "out/parts/part-00001.parquet").stat().st_mtime_ns
    assert run_stage(NUMBERS, [], Config(), out).digest == first.digest
    assert (tmp_path / "out/parts/part-00001.parquet").stat().st_mtime_ns == before


def test_kill_and_resume_gives_the_same_dataset(tmp_path):
    """A process that dies by SIGKILL inside the third part leaves two receipts and no half-written file under a final name."""
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path[:0] = {[os.getcwd(), os.path.dirname(__file__)]!r}
        import test_stage
        from pipelines.stage import Stage, run_stage
        def dying(payload, config, output):
            test_stage.run(payload, config, output)
            if payload["start"] == 20:
                os.kill(os.getpid(), signal.SIGKILL)
        run_stage(Stage(name="numbers", version=1, plan=test_stage.plan, run=dying), [], test_stage.Config(), {str(tmp_path / "out")!r})
    """)
    died = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert sorted(path.name for path in tmp_path.glob("out/receipts/*")) == ["part-00000.json", "part-00001.json"]
    resumed = run_stage(NUMBERS, [], Config(), str(tmp_path / "out"))
    assert resumed.digest == run_stage(NUMBERS, [], Config(), str(tmp_path / "straight")).digest
    assert not list(tmp_path.glob("out/**/.tmp-*"))


def test_an_unfinished_dataset_is_not_opened(tmp_path):
    with pytest.raises(UserError, match="no dataset here"):
        Dataset.open(str(tmp_path))
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="not finished"):
        Dataset.open(str(tmp_path))
