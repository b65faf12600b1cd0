"""KV transfers share an engine's link."""

import pytest

from beaconry.engine_model.kv_link import BYTES_PER_S, LATENCY_S, KvLink, KvWay, Wire


def test_a_transfer_takes_its_bytes_over_the_bandwidth():
    way = KvWay(bytes_per_token=36_864, bytes_per_s=40e9, latency_s=0.005)
    assert way.seconds(5000) == pytest.approx(5000 * 36_864 / 40e9)


def test_transfers_on_a_link_follow_each_other_and_an_idle_link_begins_at_once():
    link = KvLink()
    assert link.send(1.0, 0.5) == 1.5
    assert link.send(1.2, 0.5) == 2.0
    assert link.send(5.0, 0.5) == 5.5


def test_every_wire_has_its_figures_and_faster_ones_wait_less():
    assert set(BYTES_PER_S) == set(LATENCY_S) == set(Wire)
    assert sorted(Wire, key=BYTES_PER_S.__getitem__) == sorted(Wire, key=LATENCY_S.__getitem__, reverse=True)
