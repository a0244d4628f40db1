"""What becomes of every damaged archive: records read, losses by name, and what warcio and fastwarc make of it.

    python benchmarks/malformed_archives.py [--data FOLDER]

A row a file: records of every type met; pages (documents to extract); rows refused, by reason, and records that are not whole, by damage; the largest
resident set of the process so far. Then warcio's and fastwarc's records until their end or their error.
"""

import argparse
import os
import resource
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fastwarc.warc import ArchiveIterator as Fast
from fastwarc.warc import WarcRecordType
from warcio.archiveiterator import ArchiveIterator as Warcio

from pipelines.read import plan_parts, records


def outcome(path: Path) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """(records by type, pages and refused rows by reason, damage) of one file."""
    tally: Counter[str] = Counter()
    rows = [record for part in plan_parts([str(path)]) for record in records(part, tally=tally)]
    return tally, Counter(row.reason or "page" for row in rows), Counter(row.damage for row in rows if row.damage)


def until_error(iterator: Iterator) -> str:
    count = 0
    try:
        for _ in iterator:
            count += 1
    except Exception as error:
        return f"{count}, then {type(error).__name__}"
    return str(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRISTMILL_DATA") or "../shared/data"))
    root = parser.parse_args().data / "crawl/malformed"
    print("| file | records | rows | not whole | warcio | fastwarc |\n|---|---|---|---|---|---|")
    warnings.simplefilter("ignore")
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        tally, rows, damage = outcome(path)
        with path.open("rb") as one, path.open("rb") as other:
            theirs = until_error(Warcio(one, arc2warc=True)), until_error(Fast(other, record_types=WarcRecordType.any_type, parse_http=False))
        print(f"| {path.relative_to(root)} | {sum(tally.values())} | {_told(rows)} | {_told(damage)} | {' | '.join(theirs)} |")
    print(f"\nLargest resident set: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB")


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
