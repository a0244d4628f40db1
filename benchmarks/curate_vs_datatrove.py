"""Curation as a whole against datatrove: the same WARC files, two worker processes each, in one run.

    python benchmarks/curate_vs_datatrove.py [--data FOLDER] [--workers 2] [--scale] [--peer-python .venv-peers/bin/python]

Theirs: WarcReader, Trafilatura (favouring precision), GopherRepetitionFilter, GopherQualityFilter, C4QualityFilter, FineWebQualityFilter, JsonlWriter.
Ours: `gristmill curate` with the same four families (and, as always, language, every other signal, reasons and rejected rows). The inputs are
real pages (WCXB, scrapinghub, trafilatura's evaluation set), dealt into equal files so that datatrove, which does not split files, has no idle worker.
Times are wall time from starting the command to its end, imports and worker start included; memory is the largest resident set of any worker.
`--scale` then measures ours alone: four times the input, another number of workers (the same bytes), and the same line again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SETS = ("wcxb-dev", "scrapinghub-aeb", "trafilatura-eval")
FAMILIES = "families=[gopher_repetition,gopher_quality,c4,fineweb]"


def deal(data: Path, folder: Path, files: int, copies: int = 1) -> tuple[list[str], int]:
    """Write the sets' pages as `files` gzip WARCs of about equal size (the members as they are); (paths, pages)."""
    from warcio.archiveiterator import ArchiveIterator

    folder.mkdir(parents=True)
    paths = [folder / f"pages-{n:02d}.warc.gz" for n in range(files)]
    outs = [path.open("wb") for path in paths]
    pages = 0
    for name in SETS:
        raw = (data / "extraction" / f"{name}.warc.gz").read_bytes()
        with (data / "extraction" / f"{name}.warc.gz").open("rb") as file:
            iterator = ArchiveIterator(file)
            for record in iterator:
                kind = record.rec_type
                record.content_stream().read()
                start, length = iterator.get_record_offset(), iterator.get_record_length()
                if kind == "response":
                    for _ in range(copies):
                        outs[pages % files].write(raw[start : start + length])
                        pages += 1
    for out in outs:
        out.close()
    return [str(path) for path in paths], pages


def measured(command: list[str]) -> tuple[float, float, str]:
    """(wall seconds, megabytes of the largest worker, standard output)."""
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    largest, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        for child in watched.children(recursive=True):
            try:
                largest = max(largest, child.memory_info().rss)
            except psutil.Error:
                continue
        time.sleep(0.1)
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command[:4])} ... failed:\n{err[-2000:]}")
    return time.perf_counter() - began, largest / 1e6, out


def ours(files: list[str], out: Path, workers: int, *extra: str) -> tuple[float, float, dict]:
    command = [sys.executable, "-m", "flows.cli", "curate", *files, FAMILIES, "mask=[]", *extra, "--out", str(out), "--workers", str(workers), "--quiet"]
    seconds, memory, _ = measured(command)
    return seconds, memory, json.loads((out / "dataset.json").read_text())


def peer(folder: str, out: str, tasks: int, workers: int) -> None:
    """Runs in the peer's environment, in a process of its own."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    steps = [
        WarcReader(folder), Trafilatura(favour_precision=True), GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter(),
        JsonlWriter(f"{out}/kept"),
    ]  # fmt: skip
    LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=workers, logging_dir=f"{out}/logs").run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRISTMILL_DATA") or "../shared/data"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--copies", type=int, default=1, help="of every page, in the comparison")
    parser.add_argument("--scale", action="store_true", help="ours alone at four times the input, other workers, again")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--peer-python", default=".venv-peers/bin/python")
    parser.add_argument("--peer", nargs=4, metavar=("FOLDER", "OUT", "TASKS", "WORKERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        folder, out, tasks, workers = arguments.peer
        return peer(folder, out, int(tasks), int(workers))
    scratch = Path(tempfile.mkdtemp(prefix="curate-vs-datatrove-"))
    try:
        compare(arguments, scratch)
    finally:
        shutil.rmtree(scratch)


def compare(arguments: argparse.Namespace, scratch: Path) -> None:
    workers = arguments.workers
    files, pages = deal(arguments.data, scratch / "in", arguments.files, arguments.copies)
    print(f"{pages:,} pages in {len(files)} files, {workers} workers each, {os.cpu_count()} cores\n")
    print("| | seconds | pages/s | largest worker, MB | kept | times |\n|---|---|---|---|---|---|", flush=True)
    seconds, memory, about = ours(files, scratch / "ours", workers)
    rows = [("gristmill curate", seconds, memory, about["rows"])]
    if not arguments.no_peer:
        command = [arguments.peer_python, __file__, "--peer", str(scratch / "in"), str(scratch / "theirs"), str(arguments.files), str(workers)]
        theirs, their_memory, _ = measured(command)
        stats = json.loads((scratch / "theirs/logs/stats.json").read_text())
        rows.append(("datatrove", theirs, their_memory, stats[-1]["stats"]["total"]))
    for label, took, held, kept in rows:
        print(f"| {label} | {took:.1f} | {pages / took:.1f} | {held:.0f} | {kept} | {rows[-1][1] / took:.1f} |", flush=True)
    if arguments.scale:
        scale(arguments, scratch, files, about)


def scale(arguments: argparse.Namespace, scratch: Path, files: list[str], about: dict) -> None:
    again, _, same = ours(files, scratch / "ours", arguments.workers)
    print(f"\nThe same line again: {again:.1f} s, {'no part redone' if same == about else 'DIFFERENT'}.")
    _, _, serial = ours(files, scratch / "serial", 0)
    _, _, one = ours(files, scratch / "one", 1)
    print(f"Serial, 1 and {arguments.workers} workers: {'the same bytes' if serial['digest'] == one['digest'] == about['digest'] else 'DIFFERENT BYTES'}.")
    print("\n| pages | files | seconds | pages/s | largest worker, MB |\n|---|---|---|---|---|", flush=True)
    for copies in (1, 4):
        more, pages = deal(arguments.data, scratch / f"in-{copies}", arguments.files, copies)
        seconds, memory, _ = ours(more, scratch / f"ours-{copies}", arguments.workers)
        print(f"| {pages:,} | {len(more)} | {seconds:.1f} | {pages / seconds:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
