"""Hugging Face `NemotronH` folders, both ways.

On disk every name of the body starts with `backbone.` and every expert is two matrices of its own; in memory experts are stacked. `mtp.*` is kept
(transformers drops it without a word). Files are mapped, not copied, where a tensor is kept as it is, and read straight into place where it is not (experts,
other dtypes), so that loading takes the model's own memory and one tensor. Loading names what is missing, extra, misshapen or not finite.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import HybridConfig
from model.weights_file import WeightsFile

_EXPERT = re.compile(r"^(.*\.mixer\.experts)\.(\d+)\.(up_proj|down_proj)\.weight$")
_SHARD = re.compile(r"^model-\d{5}-of-\d{5}\.safetensors$")
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # Hugging Face's customary limit


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


# ---- writing


def save(lm, path: str | Path, *, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json and the weights: one file, or shards of at most `shard_bytes` (a larger tensor gets one of its own) and their index.

    What names the weights (the file, or the index) is written last and by rename; one shard is held in memory at a time. The routers' biases stay float32 in
    any dtype. Files of an earlier save are removed when they are no part of this one.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = lm.config.to_hf() | {"dtype": str(dtype or lm.lm_head.weight.dtype).removeprefix("torch.")}
    _replace(folder / CONFIG, lambda temporary: temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n"))
    shards = list(_shards(disk_names(lm), dtype, shard_bytes))
    files = [WEIGHTS] if len(shards) == 1 else [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards):
        tensors = {name: tensor.to(_kept_as(name, tensor, dtype)).contiguous() for name, tensor in shard}
        _replace(folder / file, lambda temporary, tensors=tensors: save_file(tensors, temporary, metadata={"format": "pt"}))
    if len(shards) > 1:
        total = sum(_bytes(name, tensor, dtype) for shard in shards for name, tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": {name: file for file, shard in zip(files, shards) for name, _ in shard}}
        _replace(folder / INDEX, lambda temporary: temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n"))
    for file in [INDEX, *sorted(entry.name for entry in folder.iterdir() if entry.name == WEIGHTS or _SHARD.match(entry.name))]:
        if file not in files and not (file == INDEX and len(shards) > 1):
            (folder / file).unlink(missing_ok=True)


def _shards(tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype | None, limit: int) -> Iterator[list[tuple[str, Tensor]]]:
    """The tensors in order, cut where the next one would pass the limit."""
    shard: list[tuple[str, Tensor]] = []
    taken = 0
    for name, tensor in tensors:
        size = _bytes(name, tensor, dtype)
        if shard and taken + size > limit:
            yield shard
            shard, taken = [], 0
        shard.append((name, tensor))
        taken += size
    yield shard


def _bytes(name: str, tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * _kept_as(name, tensor, dtype).itemsize


def _kept_as(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype a tensor is written in. The routers' biases move by a thousandth a step: bfloat16 would lose that."""
    return tensor.dtype if dtype is None or name.endswith("e_score_correction_bias") else dtype


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    temporary = target.with_name(target.name + ".tmp")
    write(temporary)
    os.replace(temporary, target)


# ---- reading


def load(path: str | Path, *, dtype: torch.dtype | None, compute_dtype: torch.dtype):
    """The model in folder `path`, in evaluation mode; parameters in `dtype`, None for the file's own. ValueError names what is wrong with the folder."""
    from model.lm import HybridLM

    folder = Path(path)
    config = read_config(folder)
    with torch.device("meta"):
        lm = HybridLM(config, compute_dtype=compute_dtype)
    expected = {name: tuple(tensor.shape) for name, tensor in disk_names(lm)}
    where = _locate(folder)
    _check_names(folder, expected, where)
    state: dict[str, Tensor] = {}
    bad: list[str] = []
    for name, file in where.items():
        try:
            _place(state, name, file, expected[name], config, dtype)
        except ValueError as error:
            bad.append(str(error))
    if bad:
        raise ValueError(f"{folder}: {_few(bad)}")
    lm.load_state_dict(state, strict=True, assign=True)
    for parameter in lm.parameters():
        parameter.requires_grad_(True)
    return lm.eval()


def read_config(folder: Path) -> HybridConfig:
    """config.json of a model folder. ValueError if it is absent, not JSON or not a model we can build."""
    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a JSON object")
    return HybridConfig.from_hf(content)


def _place(state: dict[str, Tensor], name: str, file: WeightsFile, shape: tuple[int, ...], config: HybridConfig, dtype: torch.dtype | None) -> None:
    """Put one tensor from disk where the model keeps it; experts go into their row of the stack. ValueError says why it cannot be used."""
    if file.shape(name) != shape:
        raise ValueError(f"{name} has shape {list(file.shape(name))}, not {list(shape)}")
    stored = file.dtype(name)
    wanted = torch.float32 if name.endswith("e_score_correction_bias") else dtype or stored
    expert = _EXPERT.match(name)
    if expert:
        key = f"{expert[1]}.{expert[3]}".removeprefix("backbone.")
        if key not in state:
            state[key] = torch.empty(config.n_routed_experts, *shape, dtype=wanted)
        if state[key].dtype != wanted:
            raise ValueError(f"{name} is {stored}, other experts of its layer {state[key].dtype}".replace("torch.", ""))
        tensor = state[key][int(expert[2])]
        file.read_into(name, tensor) if wanted == stored else tensor.copy_(file.read_into(name, torch.empty(shape, dtype=stored)))
    elif wanted == stored:
        tensor = state[name.removeprefix("backbone.")] = file.mapped(name)
    else:
        tensor = state[name.removeprefix("backbone.")] = file.read_into(name, torch.empty(shape, dtype=stored)).to(wanted)
    if not all(torch.isfinite(bound) for bound in torch.aminmax(tensor)):  # both are NaN if any element is
        raise ValueError(f"{name} holds NaN or infinite values")


def _locate(folder: Path) -> dict[str, WeightsFile]:
    """Tensor name -> the file that holds it, for a single file or a sharded checkpoint."""
    if not (folder / INDEX).is_file():
        file = WeightsFile(folder / WEIGHTS)
        return dict.fromkeys(file.names(), file)
    try:
        weight_map = {str(name): str(file) for name, file in json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is not a safetensors index: {error!r}") from None
    stray = [file for file in weight_map.values() if Path(file).name != file]
    if stray:
        raise ValueError(f"{folder / INDEX} points outside its folder: {stray[0]!r}")
    files = {file: WeightsFile(folder / file) for file in sorted(set(weight_map.values()))}
    for label, file in files.items():
        indexed = {name for name, home in weight_map.items() if home == label}
        held = set(file.names())
        if indexed - held:
            raise ValueError(f"{file.path} lacks {_few(sorted(indexed - held))}, which the index says it holds")
        if held - indexed:
            raise ValueError(f"{file.path} holds {_few(sorted(held - indexed))}, which the index lacks")
    return {name: files[home] for name, home in weight_map.items()}


def _check_names(folder: Path, expected: dict, where: dict) -> None:
    missing, extra = sorted(expected.keys() - where.keys()), sorted(where.keys() - expected.keys())
    problems = ([f"missing {_few(missing)}"] if missing else []) + ([f"unexpected {_few(extra)}"] if extra else [])
    if problems:
        raise ValueError(f"{folder} does not match its config.json: {'; '.join(problems)}")


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
