"""Reading alone: our records against fastwarc's and warcio's, on the same archives, one thread each, in one run.

    python benchmarks/reading_speed.py [--data FOLDER] [--passes N]

Each reads every response and its body, HTTP headers parsed; ours and warcio undo chunks and content encodings, ours also checks every length against where
the next record begins and says where each record lies. Readers alternate; the best pass of each counts, in CPU seconds.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from fastwarc.warc import ArchiveIterator as Fast
from fastwarc.warc import WarcRecordType
from warcio.archiveiterator import ArchiveIterator as Warcio

from pipelines.read import plan_parts, records


def ours(files: list[str]) -> int:
    return sum(record.status is not None for part in plan_parts(files) for record in records(part))


def fastwarc(files: list[str]) -> int:
    count = 0
    for path in files:
        with open(path, "rb") as file:
            for record in Fast(file, record_types=WarcRecordType.response, parse_http=True):
                record.reader.read()
                count += 1
    return count


def warcio(files: list[str]) -> int:
    count = 0
    for path in files:
        with open(path, "rb") as file:
            for record in Warcio(file):
                if record.rec_type == "response":
                    record.content_stream().read()
                    count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRISTMILL_DATA") or "../shared/data"))
    parser.add_argument("--passes", type=int, default=5)
    arguments = parser.parse_args()
    files = sorted(map(str, (arguments.data / "crawl/docs-crawl").glob("*.warc.gz")))
    megabytes = sum(map(os.path.getsize, files)) / 1e6
    readers: dict[str, Callable[[list[str]], int]] = {"ours": ours, "fastwarc": fastwarc, "warcio": warcio}
    counts, best = {}, dict.fromkeys(readers, float("inf"))
    for _ in range(arguments.passes):
        for name, read in readers.items():
            start = time.process_time()
            counts[name] = read(files)
            best[name] = min(best[name], time.process_time() - start)
    print(f"{len(files)} files, {megabytes:.0f} MB stored\n\n| reader | responses | a second | ms each | ours to it |\n|---|---|---|---|---|")
    for name, seconds in best.items():
        rate, mine = counts[name] / seconds, counts["ours"] / best["ours"]
        print(f"| {name} | {counts[name]:,} | {rate:,.0f} | {1000 / rate:.3f} | {mine / rate:.2f} |")


if __name__ == "__main__":
    main()
