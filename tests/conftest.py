"""What all tests share: the folder of real data, where a machine has it, and quiet, offline orchestration."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real crawls and ground truth; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("GRISTMILL_DATA") or Path(__file__).resolve().parents[1].parent / "shared/data")
    if not (root / "MANIFEST.md").is_file():
        pytest.skip("the real-data folder is not on this machine (set GRISTMILL_DATA)")
    return root
