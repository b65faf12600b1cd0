"""Files of lines: in order, in few writes, and without harm to whoever writes when the disk is full."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from beaconry.io.line_file import MAX_PENDING, LineFile
from beaconry.values.errors import OperatorError


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def test_lines_are_appended_in_order(tmp_path: Path, loop: asyncio.AbstractEventLoop):
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    file = LineFile(str(path), loop, "access.log")
    for number in range(MAX_PENDING + 3):
        file.write(b"%d" % number)
    assert path.read_bytes().count(b"\n") == MAX_PENDING + 1
    file.close()
    assert path.read_bytes().split() == [b"before", *(b"%d" % number for number in range(MAX_PENDING + 3))]


def test_a_file_that_cannot_be_had_is_the_operators_to_change(tmp_path: Path, loop: asyncio.AbstractEventLoop):
    with pytest.raises(OperatorError, match=r"no/log: No such file or directory; check access\.log"):
        LineFile(str(tmp_path / "no" / "log"), loop, "access.log")
    (tmp_path / "log").touch()
    with pytest.raises(OperatorError, match=r"log exists already; move it away or change access\.record"):
        LineFile(str(tmp_path / "log"), loop, "access.record", fresh=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is needed")
def test_a_full_disk_costs_lines_and_one_complaint_and_nothing_else(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
):
    file = LineFile("/dev/full", loop, "access.log")
    with caplog.at_level(logging.WARNING):
        for _ in range(3 * MAX_PENDING):
            file.write(b"line")
        file.write(b"last")
        file.close()
    (complaint,) = caplog.messages
    assert (
        complaint
        == f"access.log (/dev/full) cannot be written: No space left on device; up to {MAX_PENDING} lines are lost"
    )
