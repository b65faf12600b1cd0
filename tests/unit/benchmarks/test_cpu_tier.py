"""The short form of the benchmark of tiers runs, prints its figures, and writes them as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).parents[3]


def smoke(module, tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", "--smoke", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(file.read_text())


def test_cpu_tier_shows_that_loading_beats_computing_again(tmp_path):
    printed, figures = smoke("cpu_tier", tmp_path)
    assert "loaded %" in printed
    rows = {row["setup"]: row for row in figures}
    assert rows["GPU, exact"]["loaded_percent"] == 0.0 < rows["host memory, exact"]["loaded_percent"]
    assert rows["host memory, exact"]["hit_percent"] > rows["GPU, exact"]["hit_percent"] + 20
    assert rows["host memory, exact"]["ttft_p90_ms"] < rows["GPU, exact"]["ttft_p90_ms"]
