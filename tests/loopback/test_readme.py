"""Every command of the README does what the README says, run exactly as it is written there."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
SHELL = [text.strip() for kind, text in BLOCKS if kind == "sh"]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
ELSEWHERE = {"make test"}
"""Run by whoever runs this test."""


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def output_of(argv: list[str] | str) -> str:
    done = subprocess.run(
        argv, shell=isinstance(argv, str), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not port_is_free(8080), reason="the README's port 8080 is taken on this machine")
@pytest.mark.skipif(
    not (ROOT / ".venv").is_dir(), reason="`make up` would set up an environment; run the tests by `make test`"
)
def test_the_readme_s_commands_work_as_written():
    assert SHELL[0] == "make up"
    with subprocess.Popen(["make", "up"], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as fleet:
        try:
            assert fleet.stdout is not None
            assert any(line.startswith("Ready") and "4 engines" in line for line in fleet.stdout)
            for command in SHELL[1:]:
                if command not in ELSEWHERE:
                    assert output_of(command)
            for script in PYTHON:
                assert len(output_of([sys.executable, "-c", script]).split()) == 16
        finally:
            os.killpg(fleet.pid, signal.SIGINT)  # as Ctrl-C in a terminal does


def test_the_package_and_its_metadata_know_the_same_version():
    from beaconry import __version__

    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
