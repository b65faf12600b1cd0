"""What flow control promises where bands compete: the top band hardly notices overload, and nobody pays where there is one band only."""

import pytest

from beaconry.config.flow import Flow
from benchmarks import overload
from benchmarks.overload import ON, Mode, run

COUNTED_S = 30.0


def test_the_top_band_hardly_notices_overload_and_goodput_stays():
    calm, crowded = (run("short chats", load, ON, 3, COUNTED_S) for load in (70, 150))
    assert crowded.top_good == 1.0
    assert crowded.top_p50_ms < 1.25 * calm.top_p50_ms
    assert crowded.top_p99_ms < 4 * calm.top_p99_ms  # some 15 requests: nearly the worst of all
    assert crowded.done_per_s > 0.93 * overload.FULL_RATE["short chats"]


def test_one_band_alone_is_served_as_if_there_were_no_bands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(overload, "BANDS", (("interactive", 10, 0.0), ("standard", 0, 1.0)))
    alone = run("short chats", 150, Mode("one band", Flow(ttl_s=8.0)), 3, COUNTED_S)
    assert alone.done_per_s > 0.97 * overload.FULL_RATE["short chats"]
