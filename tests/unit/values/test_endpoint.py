"""Endpoints: what follows from where an engine publishes its KV events, and from the order in which it serves."""

import pytest

from beaconry.values.endpoint import Endpoint, EngineType, KvEventsAddress, SchedulingPolicy
from beaconry.values.kv_events import KvSource


def endpoint(kv_events):
    return Endpoint(name="a", host="10.0.0.7", port=8000, model="m", kv_events=kv_events)


def test_an_endpoint_that_tells_nothing_has_no_sources():
    assert endpoint(None).kv_sources == ()


def test_one_rank_is_one_source_at_the_address_itself():
    (source,) = endpoint(KvEventsAddress(endpoint="ipc:///run/kv", replay="ipc:///run/replay")).kv_sources
    assert source == KvSource(name="a", address="ipc:///run/kv", replay="ipc:///run/replay")


def test_each_rank_has_the_next_port():
    told = KvEventsAddress(endpoint="tcp://10.0.0.7:5557", replay="tcp://[fe80::7]:5600", ranks=2)
    assert [(one.rank, one.address, one.replay) for one in endpoint(told).kv_sources] == [
        (0, "tcp://10.0.0.7:5557", "tcp://[fe80::7]:5600"),
        (1, "tcp://10.0.0.7:5558", "tcp://[fe80::7]:5601"),
    ]


def test_without_replay_no_rank_has_one():
    assert [one.replay for one in endpoint(KvEventsAddress(endpoint="tcp://x:1", ranks=2)).kv_sources] == [None, None]


@pytest.mark.parametrize(
    "wrong", [{"ranks": 0}, {"ranks": 2, "endpoint": "ipc:///run/kv"}, {"ranks": 2, "replay": "ipc:///r"}]
)
def test_ranks_that_cannot_be_told_apart_are_refused(wrong):
    with pytest.raises(ValueError, match="rank"):
        KvEventsAddress(**({"endpoint": "tcp://x:1"} | wrong))


@pytest.mark.parametrize(
    ("policy", "engine", "told"),
    [
        (SchedulingPolicy.FCFS, EngineType.VLLM, (None, None, None)),
        (SchedulingPolicy.PRIORITY, EngineType.VLLM, (-10, 0, 5)),
        (SchedulingPolicy.PRIORITY, EngineType.SIM, (-10, 0, 5)),
        (SchedulingPolicy.PRIORITY, EngineType.SGLANG, (10, 0, -5)),
        (SchedulingPolicy.LOWEST_FIRST, EngineType.SGLANG, (-10, 0, 5)),
        (SchedulingPolicy.LOWEST_FIRST, EngineType.VLLM, (-10, 0, 5)),
    ],
)
def test_an_engine_is_told_priorities_in_its_own_direction_and_only_if_it_serves_by_them(policy, engine, told):
    one = Endpoint(name="a", host="h", port=1, model="m", engine=engine, scheduling_policy=policy)
    assert tuple(one.told_priority(priority) for priority in (10, 0, -5)) == told
