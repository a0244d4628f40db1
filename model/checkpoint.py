"""Hugging Face `NemotronH` folders, both ways.

On disk every name of the body starts with `backbone.` and every expert is two matrices of its own; in memory experts are stacked. `mtp.*` is kept
(transformers drops it without a word). Loading names what is missing, extra, misshapen or not finite, instead of running with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import HybridConfig

_EXPERT = re.compile(r"^(.*\.mixer\.experts)\.(\d+)\.(up_proj|down_proj)\.weight$")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def disk_names(lm) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model under its name on disk; experts one by one (views of the stacked tensors)."""
    for name, tensor in lm.state_dict(keep_vars=True).items():
        full = name if name.startswith(("lm_head.", "mtp.")) else f"backbone.{name}"
        stem, _, leaf = full.rpartition(".")
        if stem.endswith(".mixer.experts"):
            for expert, part in enumerate(tensor.detach().unbind(0)):
                yield f"{stem}.{expert}.{leaf}.weight", part
        else:
            yield full, tensor.detach()


def save(lm, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors, the latter last and by rename. The routers' biases stay float32 in any dtype."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in disk_names(lm):
        kept = dtype is None or name.endswith("e_score_correction_bias")
        tensors[name] = (tensor if kept else tensor.to(dtype)).contiguous().clone()
    config = lm.config.to_hf() | {"dtype": str(dtype or lm.lm_head.weight.dtype).removeprefix("torch.")}
    _replace(folder / "config.json", lambda temporary: temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n"))
    _replace(folder / WEIGHTS, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))


def load(path: str | Path, *, dtype: torch.dtype | None, compute_dtype: torch.dtype):
    """The model in folder `path`, in evaluation mode."""
    from model.lm import HybridLM

    folder = Path(path)
    config = read_config(folder)
    with torch.device("meta"):
        lm = HybridLM(config, compute_dtype=compute_dtype)
    expected = {name: tuple(tensor.shape) for name, tensor in disk_names(lm)}
    where = _locate(folder)
    _check_names(folder, expected, where)
    stacked: dict[str, Tensor] = {}
    bad: list[str] = []
    for file in sorted(set(where.values())):
        with _open(file) as handle:
            for name in (n for n, f in where.items() if f == file):
                shape = tuple(handle.get_slice(name).get_shape())
                if shape != expected[name]:
                    bad.append(f"{name} has shape {list(shape)}, not {list(expected[name])}")
                    continue
                tensor = handle.get_tensor(name)
                if not torch.isfinite(tensor).all():
                    bad.append(f"{name} holds NaN or infinite values")
                    continue
                _place(stacked, name, tensor, config, dtype)
    if bad:
        raise ValueError(f"{folder}: {_few(bad)}")
    lm.load_state_dict(stacked, strict=True, assign=True)
    for parameter in lm.parameters():
        parameter.requires_grad_(True)
    return lm.eval()


def read_config(folder: Path) -> HybridConfig:
    """config.json of a model folder. ValueError if it is absent, not JSON or not a model we can build."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    return HybridConfig.from_hf(content)


def _place(stacked: dict[str, Tensor], name: str, tensor: Tensor, config: HybridConfig, dtype: torch.dtype | None) -> None:
    """Put one tensor from disk where the model keeps it: experts go into their row of the stack."""
    if not name.endswith("e_score_correction_bias"):
        tensor = tensor.to(dtype) if dtype is not None else tensor
    else:
        tensor = tensor.float()
    expert = _EXPERT.match(name)
    if not expert:
        stacked[name.removeprefix("backbone.")] = tensor
        return
    key = f"{expert[1]}.{expert[3]}".removeprefix("backbone.")
    if key not in stacked:
        stacked[key] = torch.empty(config.n_routed_experts, *tensor.shape, dtype=tensor.dtype)
    stacked[key][int(expert[2])] = tensor


def _locate(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, for a single file or a sharded checkpoint."""
    if (folder / INDEX).is_file():
        try:
            weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / INDEX} is not a safetensors index: {error!r}") from None
        stray = [file for file in weight_map.values() if Path(file).name != file]
        if stray:
            raise ValueError(f"{folder / INDEX} points outside its folder: {stray[0]!r}")
        where = {name: folder / file for name, file in weight_map.items()}
        for file in sorted(set(where.values())):
            with _open(file) as handle:
                absent = sorted({name for name, f in where.items() if f == file} - set(handle.keys()))
            if absent:
                raise ValueError(f"{file} lacks {_few(absent)}, which the index says it holds")
        return where
    with _open(folder / WEIGHTS) as handle:
        return dict.fromkeys(handle.keys(), folder / WEIGHTS)


def _open(file: Path):
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from None


def _check_names(folder: Path, expected: dict, where: dict) -> None:
    missing, extra = sorted(expected.keys() - where.keys()), sorted(where.keys() - expected.keys())
    problems = ([f"missing {_few(missing)}"] if missing else []) + ([f"unexpected {_few(extra)}"] if extra else [])
    if problems:
        raise ValueError(f"{folder} does not match its config.json: {'; '.join(problems)}")


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _replace(target: Path, write) -> None:
    temporary = target.with_name(target.name + ".tmp")
    write(temporary)
    os.replace(temporary, target)
