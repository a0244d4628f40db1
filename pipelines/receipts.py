"""The moment at which a part is done, whoever did it and however often.

A part may run twice at once: a scheduler that has lost touch with a worker gives the part to another while the first still writes, and
the orphaned workers of a killed run write beside those of the run that resumes it. So an attempt publishes in three steps:

1. claim: `receipts/part-N.claim` is created, and only one attempt can create it. It holds the SHA-256 of every file the attempt wrote.
2. rename: the files, until now under names of the attempt's own, take their final names.
3. receipt: the claim's content becomes `receipts/part-N.json`; from now on the part is never run again.

An attempt that finds a claim goes on only if its own bytes are the claim's: then it does not matter whose file gets the name, and a
claimant that died between 1 and 3 is finished by the next. Other bytes are an error, never a mixture. Receipts carry the fingerprint of
their run, so that a worker left over from a run whose folder was removed and used again cannot slip its parts into the new one.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pipelines.atomic import create_file, write_file


class Receipts:
    """The receipts of one run of a stage; `root` is the dataset's folder on `fs`, `fingerprint` the run's identity."""

    def __init__(self, fs: Any, root: str, out: str, fingerprint: str):
        self._fs, self._root, self._out, self._fingerprint = fs, root, out, fingerprint

    def read(self, part: int) -> dict[str, Any] | None:
        """The part's receipt, or None while it is not done."""
        receipt = load_json(self._fs, f"{self._root}/{_name(part)}.json")
        return receipt if receipt is not None and receipt.get("fingerprint") == self._fingerprint else None

    def forget_claims(self) -> None:
        """Drop what attempts of an earlier, killed run had claimed and not finished. Only the process that starts a run may."""
        for claim in self._fs.glob(f"{self._root}/receipts/*.claim"):
            _remove(self._fs, claim)

    def publish(self, part: int, content: dict[str, Any], files: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Give `files`, pairs of (temporary, final) path, their final names and return the receipt: `content`, or that of an attempt that was faster.

        Raises:
            RuntimeError: another attempt at the part wrote other bytes, or the folder belongs to another run by now.
        """
        content = {"fingerprint": self._fingerprint, **content}
        plan = load_json(self._fs, f"{self._root}/plan.json")
        if plan is None or plan["fingerprint"] != self._fingerprint:
            raise RuntimeError(f"{self._out}: the folder was removed or given to another run while part {part} ran")
        done = self.read(part)
        if done is None:
            self._claim(part, content)
            done = self.read(part)  # an equal attempt may have finished the part since
        if done is None:
            for temporary, final in files:
                self._fs.mv(temporary, final)
            write_file(f"{self._out}/{_name(part)}.json", _json(content))
        _remove(self._fs, f"{self._root}/{_name(part)}.claim")
        return done or content

    def _claim(self, part: int, content: dict[str, Any]) -> None:
        if create_file(f"{self._out}/{_name(part)}.claim", _json(content)):
            return
        first = load_json(self._fs, f"{self._root}/{_name(part)}.claim")
        if first is not None and _json(first) != _json(content):  # None: its attempt has just turned it into the receipt
            raise RuntimeError(f"{self._out}: two attempts at part {part} wrote different bytes; run the command again")


def load_json(fs: Any, path: str) -> Any:
    """The content of a JSON file, or None if there is none."""
    try:
        with fs.open(path, "rb") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def _name(part: int) -> str:
    return f"receipts/part-{part:05d}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _remove(fs: Any, path: str) -> None:
    with suppress(FileNotFoundError):  # another attempt at the part was faster
        fs.rm(path)
