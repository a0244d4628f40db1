"""Every Triton kernel compiles to machine code for sm_90 and sm_100. No GPU is needed, and none has run them yet."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_SHARED = 227 * 1024  # bytes of shared memory a block may use on compute capability 9.0 and 10.0 (CUDA programming guide)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("arch", [90, 100])
def test_every_kernel_compiles(arch, dtype, tmp_path):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "tests/kernels/compile_triton.py", str(arch), dtype], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "kernels/triton").glob("*.py")}
    launched = {f"{file}.{name}" for file, text in sources.items() for name in re.findall(r"^@triton\.jit\ndef (\w+)\(", text, re.M) if f" {name}[" in text}
    assert set(found) == launched
    for name, variants in found.items():
        assert all(kernel["elf"] and kernel["shared"] <= MOST_SHARED for kernel in variants), name
