"""Runs a benchmark module's short form as a user would."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def smoke(module: str, tmp_path: Path, *arguments: str) -> tuple[str, dict[str, object]]:
    """Run `python -m benchmarks.MODULE --smoke`; what it printed, and its JSON."""
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", "--smoke", "--json", str(file), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(file.read_text())
