"""Training state survives anything between two steps and at any instant of a save; metrics end as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from training import checkpoint, optimizer
from training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from training.metrics import MetricsLog, read_rows


class Small(nn.Module):
    """Parameters, a scalar, a buffer and a name with a dot: what a model's state is made of."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.D = nn.Linear(6, 4), nn.Parameter(torch.randn(3))
        self.register_buffer("bias_E", torch.randn(5))


def trained(steps, lm=None, adamw=None, start=0):
    """Deterministic steps: the gradient of step i is drawn from seed i."""
    lm = lm or Small()
    adamw = adamw or optimizer.build(lm, 1e-2)
    for step in range(start, start + steps):
        g = torch.Generator().manual_seed(step)
        for p in lm.parameters():
            p.grad = torch.randn(p.shape, generator=g)
        lm.bias_E += 0.1
        adamw.step()
    return lm, adamw


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_resumed_run_is_the_same_run_bit_for_bit(tmp_path):
    straight, _ = trained(9)
    lm, adamw = trained(5)
    adamw.param_groups[0]["lr"] = 0.1 + 0.2  # a float with no short decimal
    path = save_checkpoint(tmp_path, 5, lm, adamw, extra={"tokens": 12})
    again, fresh = Small(seed=9), None
    fresh = optimizer.build(again, 1e-2)
    assert load_checkpoint(path, again, fresh) == (5, {"tokens": 12})
    assert same(lm, again) and fresh.param_groups[0]["lr"] == 0.1 + 0.2 and fresh.param_groups[0]["betas"] == (0.9, 0.95)
    fresh.param_groups[0]["lr"] = 1e-2
    assert same(trained(4, again, fresh, start=5)[0], straight)


def test_before_the_first_step_there_is_no_optimizer_state(tmp_path):
    lm = Small()
    save_checkpoint(tmp_path, 0, lm, optimizer.build(lm, 1e-2))
    other, adamw = trained(2, Small(seed=4))
    assert load_checkpoint(latest_checkpoint(tmp_path), other, adamw)[0] == 0
    assert same(lm, other) and not adamw.state


def test_the_last_ones_are_kept_in_order_of_steps(tmp_path):
    assert latest_checkpoint(tmp_path / "nothing") is None and latest_checkpoint(tmp_path) is None
    lm, adamw = trained(1)
    for step in (5, 50, 100_000_000, 9):
        save_checkpoint(tmp_path, step, lm, adamw, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000050", "step-100000000"]
    assert latest_checkpoint(tmp_path).name == "step-100000000"


def test_nothing_on_disk_is_a_pickle(tmp_path):
    path = save_checkpoint(tmp_path, 1, *trained(1))
    assert {name.rsplit(".", 1)[-1] for name in os.listdir(path)} == {"safetensors", "json"}


class Killed(BaseException):
    pass


def test_a_kill_at_any_instant_of_a_save_loses_nothing(tmp_path, monkeypatch):
    """Dies before each file operation of a save in turn (also one that replaces its own step): a complete checkpoint is always there."""
    first, second = trained(3), trained(4)
    real = {"replace": os.replace, "rmtree": shutil.rmtree, "write": checkpoint._write}
    for step in (4, 3):
        for fatal in range(12):
            folder = tmp_path / f"{step}-{fatal}"
            save_checkpoint(folder, 3, *first, keep=1)
            left = [fatal]

            def mortal(name, left=left):
                def operation(*arguments):
                    if left[0] == 0:
                        raise Killed
                    left[0] -= 1
                    return real[name](*arguments)
                return operation

            for where, name in ((os, "replace"), (shutil, "rmtree")):
                monkeypatch.setattr(where, name, mortal(name))
            monkeypatch.setattr(checkpoint, "_write", mortal("write"))
            try:
                save_checkpoint(folder, step, *second, keep=1)
                finished = True
            except Killed:
                finished = False
            monkeypatch.undo()
            lm, adamw = Small(seed=8), None
            adamw = optimizer.build(lm, 1e-2)
            load_checkpoint(latest_checkpoint(folder), lm, adamw)
            assert same(lm, first[0]) or same(lm, second[0])
            save_checkpoint(folder, 5, *second, keep=1)
            assert os.listdir(folder) == ["step-00000005"]
            if finished:
                assert same(lm, second[0])
                break
        assert finished and fatal >= 3


def test_a_half_written_folder_is_ignored_and_cleaned(tmp_path):
    lm, adamw = trained(1)
    good = save_checkpoint(tmp_path, 1, lm, adamw)
    half = tmp_path / ".saving-step-00000002"
    shutil.copytree(good, half)
    (half / "state.json").unlink()
    assert latest_checkpoint(tmp_path) == good
    save_checkpoint(tmp_path, 3, lm, adamw)
    assert not half.exists()


def test_sigkill_during_saves(tmp_path):
    script = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from training import optimizer\n"
        "from training.checkpoint import save_checkpoint\n"
        "lm = nn.Linear(300, 300)\n"
        "adamw = optimizer.build(lm, 1e-2)\n"
        "for step in range(1, 100000):\n"
        "    for p in lm.parameters():\n"
        "        p.data.fill_(step)\n"
        "    save_checkpoint(sys.argv[1], step, lm, adamw, keep=1)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=os.path.dirname(os.path.dirname(optimizer.__file__)))
    deadline = time.monotonic() + 60
    while (path := latest_checkpoint(tmp_path)) is None or int(path.name[5:]) < 4:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.003)
    child.send_signal(signal.SIGKILL)
    child.wait()
    lm = nn.Linear(300, 300)
    step, _ = load_checkpoint(latest_checkpoint(tmp_path), lm, optimizer.build(lm, 1e-2))
    assert step >= 4 and torch.all(lm.weight == step) and torch.all(lm.bias == step)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, *trained(1))
    for other in (nn.Linear(6, 4), nn.Sequential(nn.Linear(3, 3))):
        with pytest.raises(ValueError, match="step-00000001"):
            load_checkpoint(path, other, optimizer.build(other, 1e-2))
    wider = Small()
    wider.D = nn.Parameter(torch.zeros(7))
    with pytest.raises(ValueError, match="does not fit"):
        load_checkpoint(path, wider, optimizer.build(wider, 1e-2))
    with pytest.raises(ValueError, match="at least 1"):
        save_checkpoint(tmp_path, 2, *trained(1), keep=0)


def test_metrics_of_a_resumed_run_hold_each_step_once(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(5):
        log.write({"step": step, "loss": 1.5 / (step + 1)})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    log.close()
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 3, 4]
    log = MetricsLog(path, keep_until=3)
    log.write({"step": 3, "loss": 0.5})
    assert [row["step"] for row in log.rows()] == [0, 1, 2, 3] and log.rows()[-1]["loss"] == 0.5
    with pytest.raises(ValueError):
        log.write({"step": 4, "loss": float("nan")})
    log.close()
    assert len(path.read_text().splitlines()) == 4 and json.loads(path.read_text().splitlines()[1]) == {"step": 1, "loss": 0.75}
