"""A training run's folder: who it is, what it has measured, whether it is finished.

Why a room of its own: pretraining, SFT and RL all promise the same thing, that running the same line again finishes an
interrupted run and never mixes two runs in one folder. The promise is kept here once.

    run.json        identity: kind, recipe without its paths, digests of the inputs; written first, compared on every start
    metrics.jsonl   one row a step; cut back to the checkpoint on resume, so a step is never listed twice
    checkpoints/    training state (see training.checkpoint)
    model/          the finished Hugging Face folder
    done.json       written last, by rename: the run is complete exactly when it exists
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.atomic import write_file
from pipelines.errors import UserError
from pipelines.recipe import digest_of

__all__ = ["RunFolder", "RunRecord", "TrainResult", "model_digest", "write_json"]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run hands to the next stage. `tokens` counts trained positions (with loss), padding excluded."""

    model_path: str
    steps: int
    tokens: int
    metrics: dict[str, Any] = field(default_factory=dict)


def write_json(path: Path, value: Any) -> None:
    """Write by rename, so that a reader (or a resumed run) sees a whole file or none."""
    write_file(str(path.absolute()), json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def model_digest(folder: str | Path) -> str:
    """SHA-256 over config, weights and tokenizer of a model folder: its identity wherever it lies."""
    folder = Path(folder)
    names = sorted(p.name for p in folder.glob("*") if p.suffix in {".safetensors", ".json", ".jinja"}) if folder.is_dir() else []
    if "config.json" not in names:
        raise UserError(f"{folder} is not a model folder: it has no config.json")
    total = hashlib.sha256()
    for name in names:
        total.update(name.encode() + b"\0")
        with open(folder / name, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


class RunFolder:
    """One run's folder. Opening it claims it for `identity`, or refuses when another run lives there."""

    def __init__(self, out: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(out)
        self.identity = dict(identity)
        self.digest = digest_of(self.identity)
        run_json = self.path / "run.json"
        if run_json.exists():
            found = json.loads(run_json.read_text(encoding="utf-8"))
            if found.get("digest") != self.digest:
                raise UserError(f"{self.path}: output folder of another run ({_difference(found.get('identity', {}), self.identity)})")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            strangers = sorted(p.name for p in self.path.iterdir() if not p.name.endswith(".tmp"))
            if strangers:
                raise UserError(f"{self.path}: not empty and not a training run (it holds {strangers[0]}); choose another --out")
            write_json(run_json, {"identity": self.identity, "digest": self.digest})

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def finished(self) -> TrainResult | None:
        """The result of a run that has already been completed, else None."""
        path = self.path / "done.json"
        if not path.exists():
            return None
        done = json.loads(path.read_text(encoding="utf-8"))
        return TrainResult(str(self.model), done["steps"], done["tokens"], done["metrics"])

    def finish(self, steps: int, tokens: int, metrics: Mapping[str, Any]) -> TrainResult:
        done = {"steps": steps, "tokens": tokens, "metrics": dict(metrics), "model_digest": model_digest(self.model)}
        write_json(self.path / "done.json", done)
        return TrainResult(str(self.model), steps, tokens, dict(metrics))


@dataclass(frozen=True)
class RunRecord:
    """A training run's folder as others read it: what it is, and how many steps it has taken so far."""

    path: Path
    kind: str
    recipe: dict[str, Any]
    inputs: dict[str, Any]
    steps: int

    @classmethod
    def read(cls, path: str | Path) -> RunRecord:
        """Read a finished, running or interrupted run; a step counts once its row of metrics is written.

        Raises:
            FileNotFoundError: no training run lies there.
        """
        path = Path(path)
        identity = json.loads((path / "run.json").read_text(encoding="utf-8"))["identity"]
        metrics = path / "metrics.jsonl"
        steps = sum(line.endswith("\n") for line in metrics.open(encoding="utf-8")) if metrics.exists() else 0
        return cls(path, identity["kind"], identity["recipe"], identity["inputs"], steps)


def _difference(found: Any, wanted: Any, prefix: str = "") -> str:
    """Name the first key two identities disagree on: the one line a person needs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                return _difference(found.get(key), wanted.get(key), f"{prefix}.{key}" if prefix else key)
    return f"{prefix or 'identity'}: {found!r} there, {wanted!r} asked"
