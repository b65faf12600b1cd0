"""The flags of a simulated engine become its options."""

import argparse

import pytest

from beaconry.apps.engine import configure, options_of
from beaconry.engine_model.kv_link import KvWay
from beaconry.io.engine.kv_params import KvRole
from beaconry.values.errors import OperatorError


def options(*flags):
    parser = argparse.ArgumentParser()
    configure(parser)
    return options_of(parser.parse_args(flags))


def test_memory_of_the_host_becomes_blocks_that_load_at_the_links_speed():
    """A token of Qwen3-32B has 2 x 64 layers x 8 heads x 128 x 2 bytes = 256 KiB; two accelerators load it over two links."""
    offload = options("--preset=qwen3-32b/h100x2", "--kv-offloading-size=1", "--block-size=32").offload
    assert offload.blocks == 128
    assert offload.load_s == pytest.approx(32 * 2**18 / 50e9)


def test_without_the_flag_nothing_is_offloaded():
    assert options().offload is None


@pytest.mark.parametrize(
    "flags", [("--kv-offloading-size=0",), ("--kv-offloading-size=1", "--kv-offloading-bandwidth=0")]
)
def test_a_tier_without_room_or_speed_is_refused(flags):
    with pytest.raises(OperatorError, match="--kv-offloading-size"):
        options(*flags)


def test_adapters_have_names_and_paths():
    assert options("--lora-modules", "a=/x", "b=/y").adapters == {"a": "/x", "b": "/y"}
    with pytest.raises(OperatorError, match="write NAME=PATH"):
        options("--lora-modules", "a")


def test_kv_goes_over_the_link_of_a_scenario_unless_told_otherwise():
    """Per accelerator, of which this preset has two."""
    transfer = options("--preset=qwen3-32b/h100x2", "--kv-role=producer").kv_transfer
    assert (transfer.role, transfer.host, transfer.tensor) == (KvRole.PRODUCER, "127.0.0.1", 2)
    assert transfer.way == KvWay(bytes_per_token=2**18, bytes_per_s=80e9, latency_s=0.005)
    assert not transfer.recompute
    flags = ("--kv-link=tcp", "--kv-gb-per-s=2", "--kv-latency-s=0", "--kv-load-failure-policy=recompute")
    own = options("--preset=qwen3-32b/h100x2", "--kv-role=consumer", *flags).kv_transfer
    assert own.way == KvWay(bytes_per_token=2**18, bytes_per_s=4e9, latency_s=0.0)
    assert own.recompute


def test_without_a_role_no_kv_is_handed_over():
    assert options("--kv-link=tcp").kv_transfer is None


@pytest.mark.parametrize("flag", ["--kv-gb-per-s=0", "--kv-lease-s=0", "--kv-latency-s=-1"])
def test_impossible_links_are_refused(flag):
    with pytest.raises(OperatorError, match=flag.partition("=")[0]):
        options("--kv-role=producer", flag)


def test_a_prefill_engine_needs_an_address_that_others_reach():
    with pytest.raises(OperatorError, match="add --kv-host"):
        options("--kv-role=producer", "--host=0.0.0.0")
    assert options("--kv-role=producer", "--host=0.0.0.0", "--kv-host=10.0.0.7").kv_transfer.host == "10.0.0.7"
    assert options("--kv-role=consumer", "--host=0.0.0.0").kv_transfer is not None
