"""Training state on disk: weights, optimizer moments and counters, such that a run resumes to the same bits after kill -9 at any instant.

    <folder>/step-00000100/   *.safetensors (torch.distributed.checkpoint, its safetensors storage: no pickle)   state.json
    <folder>/.saving-*        being written, or left by a kill: never read, removed by the next save

A checkpoint is written under a dotted name and renamed when whole; `step-N` therefore is complete or is not there. Old ones are renamed away before
they are deleted, for the same reason. Random state is no part of it: every random choice in training is a function of (seed, step).
Single process, one writer a folder.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

_NAME = re.compile(r"step-(\d{8,})")
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)}


def save_checkpoint(
    folder: str | Path, step: int, lm: nn.Module, optimizer: torch.optim.Optimizer, *, extra: dict[str, Any] | None = None, keep: int = 2
) -> Path:
    """Writes the state after `step` steps and keeps the last `keep` checkpoints. Returns the checkpoint's folder.

    extra: JSON-able facts handed back by `load_checkpoint`.
    """
    if keep < 1:
        raise ValueError(f"a run keeps at least 1 checkpoint, not {keep}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _clean(folder)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".saving-{final.name}"
    moments = _optimizer_tensors(lm, optimizer)
    _write(temporary, _model_tensors(lm) | moments)
    state = {
        "step": step,
        "extra": extra or {},
        "optimizer": {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in moments.items()},
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
    }
    (temporary / "state.json").write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
    if final.exists():
        os.replace(final, folder / f".replaced-{final.name}")
    os.replace(temporary, final)
    for old in _complete(folder)[:-keep]:
        os.replace(old, folder / f".removing-{old.name}")
    _clean(folder)
    return final


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    folder = Path(folder)
    if not folder.is_dir():
        return None
    _recover(folder)
    complete = _complete(folder)
    return complete[-1] if complete else None


def load_checkpoint(path: str | Path, lm: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    """Reads a checkpoint into the model and the optimizer, in place, bit for bit. Returns (step, extra).

    ValueError when it was made by a model of other parameter names or shapes.
    """
    path = Path(path)
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    moments = {name: torch.empty(shape, dtype=_DTYPES[dtype]) for name, (dtype, shape) in state["optimizer"].items()}
    parameters = dict(lm.named_parameters())
    strangers = sorted({_split(name)[0] for name in moments} - set(parameters))
    if strangers:
        raise ValueError(f"checkpoint {path.name} holds parameters this model does not have: {', '.join(strangers[:5])}")
    _read(path, _model_tensors(lm) | moments)
    optimizer.state.clear()
    for name, tensor in moments.items():
        parameter, key = _split(name)
        optimizer.state[parameters[parameter]][key] = tensor
    if len(state["groups"]) != len(optimizer.param_groups):
        raise ValueError(f"checkpoint {path.name} has {len(state['groups'])} parameter groups, this optimizer {len(optimizer.param_groups)}")
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
    return state["step"], state["extra"]


def _model_tensors(lm: nn.Module) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in lm.state_dict().items()}


def _optimizer_tensors(lm: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """optimizer.<parameter name>.<state key>: names, not positions, so that an order of parameters is no part of the format."""
    names = {parameter: name for name, parameter in lm.named_parameters()}
    return {f"optimizer.{names[parameter]}.{key}": value for parameter, state in optimizer.state.items() for key, value in state.items()}


def _split(name: str) -> tuple[str, str]:
    """(parameter name, state key) of an optimizer tensor's name."""
    parameter, key = name.removeprefix("optimizer.").rsplit(".", 1)
    return parameter, key


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    with _alone():
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True), no_dist=True)


def _read(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fills the given tensors in place."""
    try:
        with _alone():
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    except (dcp.api.CheckpointException, RuntimeError, ValueError) as error:
        raise ValueError(f"checkpoint {folder.name} does not fit this model: {str(error).strip().splitlines()[-1]}") from error


@contextmanager
def _alone() -> Iterator[None]:
    """torch warns at every call that it works as a single process; that is what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _complete(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=lambda path: int(path.name[5:]))


def _recover(folder: Path) -> None:
    """A kill between the two renames of a replacement leaves the old checkpoint under its dotted name: put it back."""
    for path in folder.glob(".replaced-*"):
        original = folder / path.name.removeprefix(".replaced-")
        if not original.exists():
            os.replace(path, original)


def _clean(folder: Path) -> None:
    _recover(folder)
    for pattern in (".saving-*", ".removing-*", ".replaced-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)
